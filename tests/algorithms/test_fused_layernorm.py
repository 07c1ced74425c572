from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event
from torch import nn

from cram_composer.algorithms import fused_layernorm
from cram_composer.algorithms.fused_layernorm import FusedLayerNorm, LigerLayerNorm, replace_layernorms

# Liger's Triton kernels on the CPU, through Triton's interpreter. It lacks three things a GPU has: a driver to import
# with, a compiled scalar argument (`eps.to`), and libdevice's rsqrt, for which Triton's own stands in.
INTERPRETED = """
import types
import torch
import triton.language as tl
from triton.runtime import driver
driver.set_active(types.SimpleNamespace(get_benchmarker=lambda: None))
from cram_composer.algorithms.fused_layernorm import layer_norm, liger_kernels

class Scalar(float):
    def to(self, dtype):
        return self

kernels = liger_kernels()
kernels.rsqrt = lambda x: tl.math.rsqrt(x)
forward = kernels.layer_norm_forward
kernels.layer_norm_forward = lambda x, weight, bias, eps: forward(x, weight, bias, Scalar(eps))

torch.manual_seed(0)
for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
    for shape in ((3, 5, 48), (2, 64)):
        x = (torch.randn(shape) * 3 + 1).to(dtype)
        x = x.transpose(0, 1) if x.ndim == 3 else x  # not contiguous
        weight, bias = torch.randn(shape[-1]) + 1, torch.randn(shape[-1])
        ours = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
        exact = [t.detach().float().clone().requires_grad_() for t in (x, weight, bias)]
        output = layer_norm(*ours, 1e-12)[0]
        expected = torch.nn.functional.layer_norm(exact[0], shape[-1:], *exact[1:], eps=1e-12)
        assert output.dtype == dtype
        gradient = torch.randn_like(expected)
        output.backward(gradient.to(dtype))
        expected.backward(gradient.to(dtype).float())
        torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)
        for got, wanted in zip(ours, exact):
            torch.testing.assert_close(got.grad.float(), wanted.grad, rtol=tolerance, atol=5 * tolerance)
example = (torch.randn(4, 6, requires_grad=True), torch.ones(6, requires_grad=True), torch.zeros(6), 1e-5)
torch.library.opcheck(layer_norm, example)  # what torch.compile relies on: schema, shapes and autograd registration
print("equal")
"""


def test_the_kernel_computes_layernorm_and_its_gradients():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    child = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "equal"


def make_model() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, eps=1e-12))
    return nn.ModuleDict({"block": block, "last": nn.LayerNorm(6, bias=False), "out": nn.Linear(6, 2)})


def apply(model: nn.Module, device: str) -> FusedLayerNorm:
    algorithm = FusedLayerNorm()
    state = SimpleNamespace(model=model, device=SimpleNamespace(name=device))
    assert algorithm.match(Event.INIT, state)
    assert not algorithm.match(Event.FIT_START, state)
    algorithm.apply(Event.INIT, state, None)
    return algorithm


def test_on_a_gpu_every_layernorm_is_replaced_and_keeps_its_parameters(monkeypatch):
    monkeypatch.setattr(fused_layernorm, "liger_kernels", lambda: None)
    model = make_model()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # made before the algorithm runs, as in a Trainer
    algorithm = apply(model, "gpu")
    assert algorithm.kernel.startswith("liger 0.")
    assert isinstance(model["block"][1], LigerLayerNorm)
    assert isinstance(model["last"], LigerLayerNorm)
    assert model["block"][1].eps == 1e-12
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    model["last"](model["block"](torch.randn(4, 6))).sum().backward()
    optimizer.step()
    plain = make_model()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain["block"][1].weight, model["block"][1].weight)


def test_a_layernorm_without_weights_stays_torchs():
    model = nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm(4))
    assert replace_layernorms(model) == 1
    assert type(model[0]) is nn.LayerNorm


def test_a_replaced_model_gives_the_same_numbers_on_the_cpu():
    plain = make_model()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter))
    fused = copy.deepcopy(plain)
    assert replace_layernorms(fused) == 2
    inputs = torch.randn(4, 6)
    assert torch.equal(fused["last"](fused["block"](inputs)), plain["last"](plain["block"](inputs)))


def test_on_a_cpu_nothing_changes(caplog):
    model = make_model()
    with caplog.at_level("INFO"):
        algorithm = apply(model, "cpu")
    assert algorithm.kernel == "torch"
    assert type(model["last"]) is nn.LayerNorm
    assert "torch's own LayerNorm runs" in caplog.text


@pytest.mark.parametrize("error", [ImportError("not installed"), RuntimeError("0 active drivers")])
def test_without_liger_it_says_so_and_changes_nothing(error, monkeypatch, caplog):
    def fail():
        raise error

    monkeypatch.setattr(fused_layernorm, "liger_kernels", fail)
    model = make_model()
    algorithm = apply(model, "gpu")
    assert algorithm.kernel == "torch"
    assert type(model["last"]) is nn.LayerNorm
    assert str(error) in caplog.text
