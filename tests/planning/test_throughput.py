from __future__ import annotations

import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from composer.core import State
from composer.loggers import Logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from cram_composer.cli import main
from cram_composer.planning import throughput
from cram_composer.planning.throughput import Size, efficiency, scaling_warnings
from cram_composer.planning.throughput_rank import MEASURED, WARM_UP, StepTimes, steady_config
from tests.conftest import SMALL
from tests.data.data_sets import write_data_set
from tests.planning.test_spending import spec


def size(devices: int, tokens_per_second: float) -> Size:
    return Size(devices, tokens_per_second, 1.0, 0.1, 0.3, 1, "gpu")


def test_efficiency_is_per_device_and_of_the_smallest_size():
    assert efficiency(size(4, 300.0), size(2, 200.0)) == 0.75
    assert size(4, 300.0).compute_seconds == pytest.approx(0.6)


def test_warnings():
    assert scaling_warnings([size(1, 100), size(2, 180), size(4, 300)]) == []
    (slower,) = scaling_warnings([size(1, 100), size(2, 80)])
    assert slower == "adding devices does not pay off: 2 devices reach 0.80 times the tokens/s of 1"
    (poor,) = scaling_warnings([size(1, 100), size(2, 150), size(4, 190)])
    assert "4 devices reach 48 %" in poor


def test_steps_are_alike_and_the_batch_is_the_same_in_all_or_per_device(tmp_path: Path):
    config = spec(write_data_set(tmp_path / "data"), 1, "recipes=[crammed-bert,seq-length-warmup]").config
    strong, weak = steady_config(config, 2, 1, False, 5), steady_config(config, 4, 2, True, 5)
    assert (strong.train.batch_size, weak.train.batch_size) == (32, 64)
    assert strong.algorithms.batch_size_ramp is strong.algorithms.seq_length_warmup is None
    assert (strong.budget.steps, strong.budget.wall) == (WARM_UP + 10, None)
    assert config.algorithms.batch_size_ramp is not None


@pytest.fixture
def ddp():
    """A module under DDP in a group of one rank."""
    with tempfile.NamedTemporaryFile() as file:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        yield DistributedDataParallel(nn.Linear(2, 2))
        torch.distributed.destroy_process_group()


def test_every_second_of_the_last_steps_does_not_synchronise(ddp: DistributedDataParallel):
    steps, logger = 4, cast(Logger, None)
    times, synchronised = StepTimes(steps), []
    for step in range(WARM_UP + 2 * steps):
        state = cast(State, SimpleNamespace(model=ddp, timestamp=SimpleNamespace(batch=step)))
        times.before_dataloader(state, logger)
        times.after_dataloader(state, logger)
        synchronised.append(ddp.require_backward_grad_sync)
        times.batch_end(state, logger)
        assert ddp.require_backward_grad_sync
    times.fit_end(state, logger)
    assert synchronised == [True] * (WARM_UP + steps) + [True, False] * (steps // 2)
    times.seconds = [9.0] * WARM_UP + [2.0, 2.0, 2.5, 1.0] + [2.0, 1.5, 2.2, 1.7]
    assert times.summary()["step"] == 2.0 and times.summary()["communication"] == pytest.approx(0.5)


def test_a_size_that_fails_is_named_and_the_others_go_on(tmp_path: Path, monkeypatch, capsys):
    launched = []

    def launch(module: str, number: int, settings: Path, log: Path) -> int:
        launched.append(number)
        log.write_text("a line\nerror: no such luck\n")
        if number == 2:
            return 2
        measured: dict[str, Any] = {"step_seconds": 0.5, "data_seconds": 0.05, "communication_seconds": None}
        measured |= {"tokens_per_step": 400 * number, "threads": 1, "device": "cpu"}
        (log.parent / MEASURED).write_text(json.dumps(measured))
        return 0

    monkeypatch.setattr(throughput, "launch_ranks", launch)
    data, kept = write_data_set(tmp_path / "data"), tmp_path / "kept"
    arguments = ["throughput", "yamls/cram-cpu.yaml", "-n", "4,1,2,3", "--weak", *SMALL, f"data.local={data}"]
    arguments += ["train.batch_size=16", "--json", "--keep", str(kept)]
    assert main(arguments) == 1
    assert launched == [1, 2, 3, 4]
    printed = capsys.readouterr()
    assert "error: 2 device(s): the run ended with exit status 2\n  a line\n  error: no such luck\n" in printed.err
    found = json.loads(printed.out)
    assert [entry["devices"] for entry in found["sizes"]] == [1, 3, 4]
    assert [entry["tokens_per_second"] for entry in found["sizes"]] == [800, 2400, 3200]
    assert [entry["efficiency"] for entry in found["sizes"]] == [1.0, 1.0, 1.0]
    assert len(found["failures"]) == 1
    assert sorted(path.name for path in kept.iterdir()) == ["n1", "n2", "n3", "n4"]
    assert main(arguments) == 2  # kept results are not overwritten
    # A total batch of 16 rows is one microbatch, for one device only.
    assert main([item for item in arguments if item != "--weak"][:-2]) == 1
    assert capsys.readouterr().err.count("train.batch_size: must be a whole number of microbatches") == 3


@pytest.mark.parametrize("given", [["-n", "two"], ["-n", "0,1"], ["--steps", "3"], ["budget=now"]])
def test_mistakes_are_one_line(given, capsys):
    assert main(["throughput", "yamls/cram-cpu.yaml", *given]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_one_and_two_ranks(tmp_path: Path, monkeypatch, capfd):
    """Real runs, which remove their scratch folder."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    data = write_data_set(tmp_path / "data")
    arguments = ["throughput", "yamls/cram-cpu.yaml", "-n", "1,2", "--steps", "4", "--json"]
    assert main([*arguments, *SMALL, f"data.local={data}", "data.num_workers=0"]) == 0
    one, two = json.loads(capfd.readouterr().out)["sizes"]
    for entry in (one, two):
        assert entry["tokens_per_second"] * entry["step_seconds"] == pytest.approx(32 * 16)
        assert 0.0 < entry["data_seconds"] < entry["step_seconds"]
    assert one["communication_seconds"] == 0.0 and two["communication_seconds"] is not None
    assert [path.name for path in scratch.iterdir() if path.name.startswith("cram-throughput-")] == []
