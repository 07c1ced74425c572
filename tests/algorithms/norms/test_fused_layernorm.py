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

from cram_composer.algorithms.norms import fused_layernorm
from cram_composer.algorithms.norms.fused_layernorm import FusedLayerNorm, LigerLayerNorm, LigerRMSNorm, fuse_norms

# Run Liger's kernels on the CPU with Triton's interpreter, with replacements for features that it lacks: the driver at
# import, compiled scalar arguments (`eps.to`), the minimum of a program id and a scalar, and libdevice's rsqrt.
INTERPRETED = """
import types
import torch
import triton.language as tl
from triton.runtime import driver
driver.set_active(types.SimpleNamespace(get_benchmarker=lambda: None))
from cram_composer.algorithms.norms.fused_kernels import layer_norm, layer_norm_kernels, rms_norm, rms_norm_kernels

class Scalar(float):
    def to(self, dtype):
        return self

def with_scalars(module, name):
    function = getattr(module, name)
    scalars = lambda value: Scalar(value) if isinstance(value, float) else value
    setattr(module, name, lambda *arguments, **others: function(*map(scalars, arguments), **others))

for kernels in (layer_norm_kernels(), rms_norm_kernels()):
    kernels.rsqrt = lambda x: tl.math.rsqrt(x)
with_scalars(layer_norm_kernels(), "layer_norm_forward")
with_scalars(rms_norm_kernels(), "rms_norm_forward")
with_scalars(rms_norm_kernels(), "rms_norm_backward")

def of_torch(x, weight, bias=None):
    shape = x.shape[-1:]
    if bias is None:
        return torch.nn.functional.rms_norm(x, shape, weight, 1e-12)
    return torch.nn.functional.layer_norm(x, shape, weight, bias, 1e-12)

torch.manual_seed(0)
for kernel, parameters in ((layer_norm, 2), (rms_norm, 1)):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for shape in ((3, 5, 48), (2, 64)):
            x = (torch.randn(shape) * 3 + 1).to(dtype)
            x = x.transpose(0, 1) if x.ndim == 3 else x  # not contiguous
            tensors = (x, torch.randn(shape[-1]) + 1, torch.randn(shape[-1]))[: parameters + 1]
            ours = [t.detach().clone().requires_grad_() for t in tensors]
            exact = [t.detach().float().clone().requires_grad_() for t in tensors]
            output = kernel(*ours, 1e-12)[0]
            expected = of_torch(*exact)
            assert output.dtype == dtype
            gradient = torch.randn_like(expected)
            output.backward(gradient.to(dtype))
            expected.backward(gradient.to(dtype).float())
            torch.testing.assert_close(output.float(), expected, rtol=tolerance, atol=tolerance)
            for got, wanted in zip(ours, exact):
                torch.testing.assert_close(got.grad.float(), wanted.grad, rtol=tolerance, atol=5 * tolerance)
    # what torch.compile relies on: schema, shapes and autograd registration
    example = (torch.randn(4, 6, requires_grad=True), torch.ones(6, requires_grad=True), torch.zeros(6))
    torch.library.opcheck(kernel, (*example[: parameters + 1], 1e-5))
print("equal")
"""


def test_the_kernels_compute_norms_and_their_gradients():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[3])
    child = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip() == "equal"


def make_model() -> nn.Module:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6, eps=1e-12), nn.RMSNorm(6, eps=1e-6))
    return nn.ModuleDict({"block": block, "last": nn.LayerNorm(6, bias=False), "out": nn.Linear(6, 2)})


def apply(model: nn.Module, device: str) -> FusedLayerNorm:
    algorithm = FusedLayerNorm()
    state = SimpleNamespace(model=model, device=SimpleNamespace(name=device))
    assert algorithm.match(Event.INIT, state)
    assert not algorithm.match(Event.FIT_START, state)
    algorithm.apply(Event.INIT, state, None)
    return algorithm


def kernels_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("layer_norm_kernels", "rms_norm_kernels"):
        monkeypatch.setattr(fused_layernorm, name, lambda: None)


def test_on_a_gpu_every_norm_is_replaced_and_keeps_its_parameters(monkeypatch):
    kernels_there(monkeypatch)
    model = make_model()
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # created before the algorithm runs, as in a Trainer
    algorithm = apply(model, "gpu")
    assert algorithm.kernel.startswith("liger 0.")
    assert isinstance(model["block"][1], LigerLayerNorm)
    assert isinstance(model["block"][2], LigerRMSNorm)
    assert isinstance(model["last"], LigerLayerNorm)
    assert (model["block"][1].eps, model["block"][2].eps) == (1e-12, 1e-6)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    model["last"](model["block"](torch.randn(4, 6))).sum().backward()
    optimizer.step()
    plain = make_model()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain["block"][1].weight, model["block"][1].weight)


def test_compiled_layers_keep_torchs_norms(monkeypatch, caplog):
    kernels_there(monkeypatch)
    model = make_model()
    model.compiled_regions = [model["block"]]
    with caplog.at_level("INFO"):
        assert apply(model, "gpu").kernel == "torch"
    assert type(model["last"]) is nn.LayerNorm and "the layers are compiled" in caplog.text


def test_unsupported_norms_are_not_replaced():
    model = nn.Sequential(
        nn.LayerNorm(4, elementwise_affine=False), nn.LayerNorm((2, 4)), nn.RMSNorm((2, 4)), nn.LayerNorm(4)
    )
    assert fuse_norms(model) == 1
    assert [type(layer) for layer in model[:3]] == [nn.LayerNorm, nn.LayerNorm, nn.RMSNorm]


def test_a_replaced_model_gives_the_same_numbers_on_the_cpu():
    plain = make_model()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter))
    fused = copy.deepcopy(plain)
    assert fuse_norms(fused) == 3
    inputs = torch.randn(4, 6)
    assert torch.equal(fused["last"](fused["block"](inputs)), plain["last"](plain["block"](inputs)))


def test_on_a_cpu_nothing_changes(caplog):
    model = make_model()
    with caplog.at_level("INFO"):
        algorithm = apply(model, "cpu")
    assert algorithm.kernel == "torch"
    assert type(model["last"]) is nn.LayerNorm
    assert "no GPU; using torch's norms" in caplog.text


@pytest.mark.parametrize("error", [ImportError("not installed"), RuntimeError("0 active drivers")])
def test_without_liger_it_warns_and_changes_nothing(error, monkeypatch, caplog):
    def fail():
        raise error

    kernels_there(monkeypatch)
    monkeypatch.setattr(fused_layernorm, "rms_norm_kernels", fail)
    model = make_model()
    algorithm = apply(model, "gpu")
    assert algorithm.kernel == "torch"
    assert type(model["last"]) is nn.LayerNorm
    assert str(error) in caplog.text
