"""The CUDA code of a training step, on a machine without a GPU: python -m benchmarks.gpu_lowering in a process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.gpu_lowering.__main__ import CASES
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.planning.cards import CARDS, memory_bytes_per_token
from cram_composer.planning.memory import StepMemory, measure_step_memory
from cram_composer.planning.microbatch import USABLE, candidates, estimated_shares, with_microbatch
from cram_composer.planning.run_spec import RunSpec, read_data_facts
from tests.conftest import REPOSITORY

RECORDED = json.loads((REPOSITORY / "benchmarks" / "gpu_lowering" / "recorded.json").read_text())
YAML = REPOSITORY / "yamls" / "cram-1gpu.yaml"
QUICK = ["cram-1gpu", "cram-1gpu-fp16"]
ARCHITECTURES = {75, 80, 86, 89, 90, 100, 120}
VERSION = torch.__version__.split("+")[0]

pytestmark = [
    pytest.mark.skipif(RECORDED["torch"] != VERSION, reason=f"recorded with torch {RECORDED['torch']}, not {VERSION}"),
    pytest.mark.skipif(torch.version.cuda is None, reason="this torch generates no code for CUDA"),
]


def lower(*options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu_lowering", "--json", *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def lowered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Lower the default run and compile its kernels, once for all test processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path = folder / "lowered.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_text(json.dumps(lower("--compile", "--cases", *QUICK)))
    return json.loads(path.read_text())


def regions(case: dict[str, Any]) -> list[dict[str, Any]]:
    return [*case["layers"], case["head"]]


def all_layers(case: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return the region of each of `count` layers: the first, and the others, which are alike."""
    return [case["layers"][0], *case["layers"][-1:] * (count - 1)]


def compare_with_record(cases: dict[str, Any]) -> None:
    for name, case in cases.items():
        recorded = RECORDED["cases"][name]
        assert case["graph_breaks"] == recorded["graph_breaks"], name
        assert len(case["layers"]) == len(recorded["layers"]), f"{name}: layers that should share a graph do not"
        for found, limit in zip(regions(case), regions(recorded), strict=True):
            assert found["saved"] <= limit["saved"], name
            for direction in ("forward", "backward"):
                for count in ("bytes", "launches"):
                    assert found[direction][count] <= limit[direction][count], f"{name} {direction} {count}"


def test_a_step_moves_no_more_bytes_than_recorded(lowered: dict[str, Any]):
    assert set(lowered["cases"]) == set(QUICK)
    compare_with_record(lowered["cases"])


def test_the_layers_are_two_graphs_without_breaks(lowered: dict[str, Any]):
    for case in lowered["cases"].values():
        assert case["graph_breaks"] == 0
        assert len(case["layers"]) == 2, "the first layer, which has no norm before attention, and the others"


def test_the_backward_of_the_head_gets_no_gradient_of_the_logits(lowered: dict[str, Any]):
    assert all(case["head"]["tangents"] == 1 for case in lowered["cases"].values()), "the gradient of the loss alone"


def test_products_are_those_of_the_model(lowered: dict[str, Any]):
    """Two FLOPs per weight and token forward, four backward; the lowering does not count those of attention."""
    case = lowered["cases"]["cram-1gpu"]
    weights = 768 * (3 * 768 + 768 + 3072 + 1536)
    tokens = case["rows"] * case["length"]
    for layer in case["layers"]:
        assert layer["forward"]["flops"] == 2 * weights * tokens and layer["backward"]["flops"] == 4 * weights * tokens
    decoder = 768 * case["vocabulary"] * case["rows"] * case["masked"]
    assert case["head"]["forward"]["flops"] == 2 * decoder and case["head"]["backward"]["flops"] == 4 * decoder


def test_kernels_compile_for_every_architecture(lowered: dict[str, Any]):
    built = {kind: set() for kind in ("bf16", "fp16", "liger")}
    for name, sizes in lowered["binaries"].items():
        built[name.split()[0]].update(map(int, sizes))
        assert all(sizes.values()), name
    assert built == {"bf16": ARCHITECTURES - {75}, "fp16": {75}, "liger": ARCHITECTURES}
    liger = {name.split()[1] for name in lowered["binaries"] if name.startswith("liger")}
    assert {"liger_cross_entropy_kernel", "_layer_norm_backward_kernel", "_rms_norm_backward_kernel"} <= liger


@pytest.fixture(scope="module")
def planned() -> tuple[RunSpec, StepMemory]:
    config = with_microbatch(compose(RunConfig, YAML, []).config, 8)
    spec = RunSpec(config, read_data_facts(config.data), 1)
    return spec, measure_step_memory(spec, "bf16")


@pytest.mark.parametrize("card", ["2080ti", "a4000", "3090"])  # 11, 16 and 24 GiB
def test_a_planned_microbatch_fits(lowered: dict[str, Any], planned: tuple[RunSpec, StepMemory], card: str):
    """Activations as lowered, the logits' gradient beside them, and what does not depend on the rows."""
    spec, step = planned
    memory = CARDS[card].memory
    sizes = candidates(spec.config, 1, spec.facts.sequence_length, "gpu")
    shares = estimated_shares(spec.config, step, 1, sizes, memory)
    rows = max(size for size in sizes if shares[size] <= USABLE)
    case = lowered["cases"]["cram-1gpu" if CARDS[card].precision == "bf16" else "cram-1gpu-fp16"]
    saved = sum(layer["saved"] for layer in all_layers(case, spec.config.model.num_hidden_layers))
    activations = rows / case["rows"] * (saved + 2 * case["head"]["saved"])
    assert activations < step.activations(rows), "a plan, whose layers are not compiled, needs more"
    assert activations + step.weights + step.gradients + step.optimizer < memory
    larger = 4 * activations + step.weights + step.gradients + step.optimizer
    assert larger > memory, "the plan leaves most of the memory unused"


@pytest.mark.parametrize("name", ["cram-1gpu", "cram-1gpu-fp16", "fp32-residual", "post-norm", "alibi", "gelu-mlp"])
def test_the_bytes_of_plans_are_those_lowered(name: str):
    """The roofline of `cram plan --card` counts what generated kernels move, and attention."""
    overrides, capability = CASES[name]
    config = with_microbatch(compose(RunConfig, YAML, overrides).config, 8)
    spec = RunSpec(config, read_data_facts(config.data), 1)
    with FakeTensorMode():
        network = spec.build_model().model
    assert isinstance(network, CramBertForMaskedLM)
    case = RECORDED["cases"][name]
    tokens = case["rows"] * case["length"]
    attention = 24 * 768  # a library kernel; its operands in bf16: 4 read or written forward, 8 backward
    layers = all_layers(case, config.model.num_hidden_layers)
    moved = sum(region[way]["fused_bytes"] for region in (*layers, case["head"]) for way in ("forward", "backward"))
    expected = moved / tokens + len(layers) * attention
    found = memory_bytes_per_token(
        network, case["length"], case["masked"], case["rows"], "bf16" if capability >= 80 else "fp16"
    )
    assert math.isclose(found, expected, rel_tol=0.05)


def test_the_algorithm_fused_layernorm_changes_nothing_in_compiled_layers():
    assert RECORDED["cases"]["fused-layernorm"] == RECORDED["cases"]["cram-1gpu"]


def test_a_16_bit_residual_stream_saves_bytes():
    low, high = (RECORDED["cases"][name]["layers"][-1] for name in ("cram-1gpu", "fp32-residual"))
    assert low["forward"]["bytes"] < 0.92 * high["forward"]["bytes"]
    assert low["backward"]["bytes"] < 0.87 * high["backward"]["bytes"] and low["saved"] < high["saved"]


@pytest.mark.slow
def test_other_presets_are_as_recorded_and_compile():
    """Takes minutes: every launch configuration of every case and architecture."""
    found = lower("--compile", "--every")
    compare_with_record(found["cases"])
    assert set(found["cases"]) == set(RECORDED["cases"])
