"""Compiled graphs of training steps: as few as there are different layers, without breaks, and none after the first."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.device import choose_device
from cram_composer.doctor.trial import Recompilations
from cram_composer.planning.run_spec import RunSpec, read_data_facts
from cram_composer.planning.speed import measure_speed
from tests.conftest import REPOSITORY, SMALL
from tests.data.data_sets import write_data_set


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("graphs") / "data")


@pytest.fixture(autouse=True)
def without_inductor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run forward and backward graphs as they are traced, which saves minutes; graphs do not depend on the backend."""

    def compile_traced(module: nn.Module, **options: object) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager", **options)

    monkeypatch.setattr(nn.Module, "compile", partialmethod(compile_traced))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


@pytest.mark.parametrize(
    "settings, graphs",
    [
        (["recipes=[crammed-bert,rope,ema,gradient-clipping]"], 2),
        (["recipes=[crammed-bert,alibi,post-norm,chunked-cross-entropy]"], 2),
        (["recipes=[modern-bert]", "model.global_every=2"], 3),  # a global and a local layer, and the head
        (["recipes=[crammed-bert,rope]", "train.precision=bf16", "model.first_norm=false"], 3),
    ],
    ids=lambda value: value[0].partition("=")[2] if isinstance(value, list) else "",
)
def test_steps_compile_each_kind_of_layer_once(data: Path, settings: list[str], graphs: int):
    overrides = [*SMALL, f"data.local={data}", "train.threads=1", "train.compile=regional", *settings]
    config = compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", overrides).config
    spec = RunSpec(config, read_data_facts(config.data), 1)
    compiled = Recompilations()
    measure_speed(spec, choose_device(config, 1), 1, compiled.expect_no_more)  # six steps of one or three microbatches
    assert not counters["graph_break"]
    assert compiled.reasons() == []
    assert counters["stats"]["unique_graphs"] == graphs
