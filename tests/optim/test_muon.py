"""Muon: its parameters, and separate orthogonalisation of the projections of a fused matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cram_composer.optim import build_optimizer
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
