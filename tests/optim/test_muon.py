"""Muon: its parameters, and separate orthogonalisation of the projections of a fused matrix."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from pytorch_optimizer import Muon
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from cram_composer.optim import build_optimizer
from cram_composer.optim.muon import ProjectionMuon, _iterate
from tests.optim.small import optimizer_config, small_model, small_settings

LR = 0.01


def newton_schulz(g: torch.Tensor, steps: int) -> torch.Tensor:
    """Iterate X <- aX + (bA + cA^2) X with A = XX^T from X = G / |G|, in fp32 (Jordan 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / g.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def polar(g: torch.Tensor) -> torch.Tensor:
    """Return the nearest (semi-)orthogonal matrix."""
    u, _, v = torch.linalg.svd(g, full_matrices=False)
    return u @ v


def update_of(model: nn.Module, name: str, gradient: torch.Tensor, **settings) -> torch.Tensor:
    """Return the update of a parameter in one step, divided by the learning rate."""
    parameter = model.get_parameter(name)
    optimizer = build_optimizer(optimizer_config("muon", lr=LR, weight_decay=0.0, **settings), model)
    before = parameter.detach().clone()
    parameter.grad = gradient.clone()
    optimizer.step()
    return (before - parameter.detach()) / LR


def test_muon_takes_the_matrices_of_layers_and_adamw_the_rest():
    model = small_model(head_transform=True, tie_word_embeddings=False, attention_bias=True)
    optimizer = build_optimizer(small_settings("muon"), model)
    taken = {id(p) for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    matrices = ["attention.qkv", "attention.out", "feedforward.w_in", "feedforward.w_out"]
    assert names == {f"model.encoder.layers.{i}.{matrix}.weight" for i in range(2) for matrix in matrices}


def test_other_parameters_are_stepped_by_torchs_adamw():
    torch.manual_seed(3)
    settings = {"lr": LR, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
    ours, plain = small_model(), small_model()
    plain.load_state_dict(ours.state_dict())
    optimizers = [
        build_optimizer(optimizer_config(name, **settings), model) for name, model in (("muon", ours), ("adamw", plain))
    ]
    rest = [p for group in optimizers[0].param_groups if not group["use_muon"] for p in group["params"]]
    names = [name for name, p in ours.named_parameters() if any(p is other for other in rest)]
    for _ in range(3):
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert names
    for name in names:
        assert torch.equal(ours.get_parameter(name), plain.get_parameter(name)), name


@pytest.mark.parametrize(("matrix", "parts"), [("attention.qkv", 3), ("feedforward.w_in", 2), ("attention.out", 1)])
def test_each_projection_is_orthogonalised_on_its_own(matrix: str, parts: int):
    """Projections with gradients of different scale get updates of equal size, 0.2 sqrt(max(rows, columns))."""
    model, name = small_model(), f"model.encoder.layers.0.{matrix}.weight"
    torch.manual_seed(2)
    rows, columns = model.get_parameter(name).shape
    gradient = torch.randn(rows, columns)
    for part, size in zip(gradient.chunk(parts), (1.0, 1e-2, 1e-4), strict=False):
        part.mul_(size)
    update = update_of(model, name, gradient)
    for part, own in zip(update.chunk(parts), gradient.chunk(parts), strict=True):
        scale = 0.2 * math.sqrt(max(rows // parts, columns))
        torch.testing.assert_close(part, scale * newton_schulz(own, 5), rtol=0.05, atol=0.05)
        assert torch.cosine_similarity(part.flatten(), polar(own).flatten(), dim=0) > 0.95
    if parts > 1:
        first, *_, last = newton_schulz(gradient, 5).chunk(parts)
        assert last.norm() < 0.1 * first.norm(), "the update of the small one vanishes if stacked"


@pytest.mark.parametrize("shape", [(64, 64), (192, 64), (64, 256)])
def test_the_update_has_about_the_size_of_adamws(shape: tuple[int, int]):
    """The root mean square is 0.2 for every shape (arXiv 2502.16982, section 2.2)."""
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False)])
    update = update_of(model, "layers.0.weight", torch.randn(shape))
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.25)


def test_more_iterations_come_nearer_to_orthogonal():
    model, name = small_model(), "model.encoder.layers.0.attention.out.weight"
    torch.manual_seed(2)
    gradient = torch.randn(16, 16)
    updates = [update_of(model, name, gradient, ns_steps=steps).flatten() for steps in (1, 5)]
    similar = [float(torch.cosine_similarity(update, polar(gradient).flatten(), dim=0)) for update in updates]
    assert similar[0] < 0.93 < similar[1]


@pytest.mark.parametrize("coefficients", ["original", "quintic", "polar_express", "polar_express_safer"])
def test_steps_equal_the_librarys_on_separate_projections(coefficients: str):
    torch.manual_seed(4)
    shapes, parts = [(48, 16), (32, 16), (16, 16), (16, 32)], [3, 2, 1, 1]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [
        [nn.Parameter(part.clone()) for part in weight.chunk(count)] for weight, count in zip(ours, parts, strict=True)
    ]
    options: dict[str, Any] = {"lr": LR, "weight_decay": 0.1, "ns_coeffs": coefficients, "use_adjusted_lr": True}
    by_parts = {count: [w for w, n in zip(ours, parts, strict=True) if n == count] for count in set(parts)}
    mine = ProjectionMuon([{"params": p, "use_muon": True, "parts": n} for n, p in by_parts.items()], **options)
    library = Muon([{"params": [part for whole in theirs for part in whole], "use_muon": True}], **options)
    for _ in range(3):
        for weight, whole in zip(ours, theirs, strict=True):
            weight.grad = torch.randn_like(weight)
            for part, grad in zip(whole, weight.grad.clone().chunk(len(whole)), strict=True):
                part.grad = grad.clone()
        mine.step()
        library.step()
    for weight, whole in zip(ours, theirs, strict=True):
        torch.testing.assert_close(weight, torch.cat(whole), rtol=1e-6, atol=1e-6)


def test_polar_express_comes_nearer_to_orthogonal():
    model, name = small_model(), "model.encoder.layers.0.attention.out.weight"
    torch.manual_seed(2)
    gradient = torch.randn(16, 16)
    updates = [update_of(model, name, gradient, ns_coeffs=name_).flatten() for name_ in ("original", "polar_express")]
    similar = [float(torch.cosine_similarity(update, polar(gradient).flatten(), dim=0)) for update in updates]
    assert similar[0] < similar[1]


class Launches(TorchDispatchMode):
    """Count operations that compute; a list operation counts per tensor where torch has no fused kernel on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        lists = [argument for argument in args if isinstance(argument, list) and argument]
        if name.startswith("_foreach"):
            alike = all(
                (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
                for one, other in zip(lists[0], lists[-1], strict=True)
            )
            self.count[name] += 1 if alike else len(lists[0])
        elif not (func.is_view or name.startswith(("empty", "_record_function"))):
            self.count[name] += 1
        return func(*args, **(kwargs or {}))


def count_launches(layers: int) -> Counter[str]:
    model = small_model(num_hidden_layers=layers)
    optimizer = build_optimizer(small_settings("muon"), model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    with Launches() as launches:
        optimizer.step()
    return launches.count


def test_the_number_of_kernels_does_not_grow_with_the_layers():
    count = count_launches(layers=4)
    assert count == count_launches(layers=2)
    assert sum(count.values()) <= 81, count


def test_float16_keeps_small_gradients(monkeypatch: pytest.MonkeyPatch):
    """Of a GPU without bfloat16; a gradient after unscaling may be below float16's smallest number."""
    seen = []

    class OnGpu(torch.Tensor):
        is_cuda = True

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: seen.append(1) is not None)
    torch.manual_seed(5)
    gradient = torch.randn(16, 32)
    found = _iterate({"ns_steps": 5, "ns_coeffs": "original"}, (gradient * 1e-9).as_subclass(OnGpu))
    assert found.dtype == torch.float16
    torch.testing.assert_close(
        found.as_subclass(torch.Tensor).float(), newton_schulz(gradient, 5), rtol=0.05, atol=0.01
    )
