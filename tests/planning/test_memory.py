from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.optim.factory import build_optimizer
from cram_composer.planning.memory import PeakBytes, measure_activation_peak, measure_step_memory, optimizer_bytes
from cram_composer.planning.run_spec import RunSpec, read_data_facts
from tests.conftest import REPOSITORY, SMALL
from tests.data.data_sets import write_data_set

LENGTH, VOCABULARY, MASKED = 16, 200, 4


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data_set(tmp_path / "data")


def spec(data: Path, *overrides: str) -> RunSpec:
    settings = [*SMALL, f"data.local={data}", *overrides]
    config = compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", settings).config
    return RunSpec(config, read_data_facts(config.data), 1)


def test_the_peak_of_a_few_tensors():
    first = torch.zeros(1000)
    with PeakBytes() as counted:
        second = first * 2  # 4000 bytes
        second.view(10, 100).add_(1)  # a view, and in place
        third = second + first  # 8000
        del second
        fourth = third.double()  # 4000 + 8000
    assert (counted.peak, counted.now) == (12000, 12000)
    del third, fourth
    assert counted.now == 0


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("changes", [[], ["model.ffn=gelu", "model.norm_position=post", "model.norm=rmsnorm"]], ids=len)
def test_activations_are_what_a_real_backward_keeps_and_the_logits(data: Path, dtype, changes):
    """For twice the microbatch, compare with the tensors that autograd's hooks find in a real model."""
    plan = spec(data, *changes)
    precision = "fp32" if dtype is None else "bf16"
    rows = 2 * plan.config.train.device_train_microbatch_size
    model = plan.build_model(dtype).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    tensors = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            tensors.append(tensor)
        return tensor

    batch = next(iter(plan.build_loader(rows)))
    given = sum(tensor.untyped_storage().nbytes() for tensor in batch.values())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(batch)
    # In addition to saved tensors: the returned logits, and their gradient in fp32 and in their own dtype.
    logits = rows * MASKED * VOCABULARY * (4 + 2 * 2 if dtype is not None else 4 + 4)
    assert outputs.logits.shape == (rows, MASKED, VOCABULARY)
    estimated = measure_step_memory(plan, precision).activations(rows)
    assert sum(kept.values()) - given < estimated
    assert estimated == pytest.approx(sum(kept.values()) + logits, rel=0.1)


def test_microbatches_make_activations_in_proportion(data: Path):
    plan = spec(data)
    step = measure_step_memory(plan, "bf16")
    with FakeTensorMode():
        assert step.activations(48) == pytest.approx(
            measure_activation_peak(plan, plan.build_model(torch.bfloat16), 48), rel=0.01
        )


def test_model_with_data_dependent_control_flow_runs_on_real_rows(data: Path):
    plan = spec(data, "recipes=[]", "model={architecture: hf, hf_name: bert}")
    step = measure_step_memory(plan, "fp32")
    assert step.activations(4) == pytest.approx(measure_activation_peak(plan, plan.build_model(), 4), rel=0.02)


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "soap", "schedule-free"])
def test_optimizer_state_is_that_of_a_real_step(data: Path, name: str):
    plan = spec(data, f"optimizer={{name: {name}, betas: null, eps: null, weight_decay: null}}")
    model = plan.build_model()
    optimizer = build_optimizer(plan.config.optimizer, model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    held = 0
    pending = list(optimizer.state.values())
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            held += item.numel() * item.element_size()
        elif isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
    with FakeTensorMode():
        assert optimizer_bytes(plan.config, plan.build_model()) == held > 0


def test_adamw_in_8_bits_is_counted(data: Path):
    plan = spec(data, "optimizer={name: adamw-8bit, betas: null, eps: null, weight_decay: null}")

    class Module(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(1000, 8)
            self.large = torch.nn.Linear(100, 100)

    # 8 bytes per element of the embedding and of the small bias; 2 of the matrix, and 8 for each of its 40 blocks
    assert optimizer_bytes(plan.config, Module()) == 8 * 8000 + 8 * 100 + 2 * 10000 + 8 * 40


def test_weights_are_counted_once_and_averages_are_copies(data: Path):
    plain, averaged = spec(data), spec(data, "recipes=[crammed-bert,ema]")
    step = measure_step_memory(plain, "fp32")
    elements = sum(parameter.numel() for parameter in plain.build_model().parameters())
    assert (step.parameters, step.weights, step.gradients) == (elements, 4 * elements, 4 * elements)
    assert step.outside_layers + 2 * step.largest_layer == step.weights
    assert measure_step_memory(averaged, "fp32").averages == step.weights
    lawa = measure_step_memory(spec(data, "recipes=[crammed-bert,lawa]", "algorithms.lawa.k=3"), "fp32")
    assert (lawa.averages, lawa.averages_host) == (0, 3 * step.weights)
