"""LayerNorm and RMSNorm in the dtype of autocast."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event, Precision
from torch import nn

from cram_composer.algorithms.norms.low_precision_layernorm import LowPrecisionNorms, lower_norms
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.models.tiny_models import tiny_model, training_batch
from tests.tiny_runs import TinyRuns, record


def norms() -> nn.ModuleList:
    torch.manual_seed(0)
    layers = nn.ModuleList(
        [nn.LayerNorm(8, eps=1e-12), nn.LayerNorm(8, bias=False), nn.RMSNorm(8, eps=1e-6), nn.RMSNorm(8)]
    )
    with torch.no_grad():
        for p in layers.parameters():
            p.add_(torch.randn_like(p))
    return layers


def apply(model: MaskedLMTrainingModel, precision: Precision) -> LowPrecisionNorms:
    algorithm, state = LowPrecisionNorms(), SimpleNamespace(model=model, precision=precision)
    assert algorithm.match(Event.INIT, state) and not algorithm.match(Event.FIT_START, state)
    algorithm.apply(Event.INIT, state, None)
    return algorithm


@pytest.mark.parametrize("index", range(4))
def test_under_autocast_inputs_and_outputs_have_its_dtype(index: int):
    exact, low = norms()[index], norms()
    assert lower_norms(low) == 4
    x = torch.randn(5, 8) * 3 + 1
    with torch.autocast("cpu", torch.bfloat16):
        assert exact(x).dtype == torch.float32
        output = low[index](x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact(x), rtol=3e-2, atol=3e-2)
    output.sum().backward()
    assert low[index].weight.grad.dtype == torch.float32


def test_without_autocast_nothing_changes_and_parameters_are_shared():
    plain = norms()
    low = copy.deepcopy(plain)
    before = dict(low.named_parameters())
    lower_norms(low)
    after = dict(low.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    x = torch.randn(5, 8)
    assert all(torch.equal(one(x), other(x)) for one, other in zip(low, plain, strict=True))


@pytest.mark.parametrize(
    ("precision", "autocast", "kernel"),
    [
        (Precision.AMP_BF16, None, "torch, in bfloat16"),
        (Precision.AMP_FP16, None, "torch, in float16"),
        (Precision.FP32, torch.bfloat16, "torch, in bfloat16"),  # bf16 on a CPU
        (Precision.FP32, None, "torch"),
    ],
)
def test_the_kernel_in_use_is_reported(precision, autocast, kernel, caplog: pytest.LogCaptureFixture):
    model = MaskedLMTrainingModel(tiny_model(), autocast_dtype=autocast)
    with caplog.at_level("INFO"):
        assert apply(model, precision).kernel == kernel
    changed = [type(m) for m in model.modules() if isinstance(m, nn.LayerNorm) and type(m) is not nn.LayerNorm]
    assert bool(changed) == (kernel != "torch")
    assert ("no effect with precision fp32" in caplog.text) == (kernel == "torch")


def test_losses_are_close_to_those_with_fp32_norms():
    batch = training_batch()
    exact, low = (MaskedLMTrainingModel(tiny_model(norm="rmsnorm"), torch.bfloat16) for _ in range(2))
    apply(low, Precision.FP32)
    losses = [float(model(batch).loss) for model in (exact, low)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2) and losses[0] != losses[1]


def test_the_record_names_the_kernel(tiny_run: TinyRuns):
    run = tiny_run("low-norms", "recipes=[crammed-bert,low-precision-layernorm]", "train.precision=bf16")
    assert record(run)["kernels"]["layernorm"] == "torch, in bfloat16"
    run = tiny_run("low-norms-fp32", "recipes=[crammed-bert,low-precision-layernorm]")
    assert record(run)["kernels"]["layernorm"] == "torch"
