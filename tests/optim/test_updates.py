"""Updates equal the formulas of the papers, implemented here for one weight tensor."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from cram_composer.optim import build_optimizer, parameter_groups
from tests.optim.small import optimizer_config

LR, STEPS = 0.02, 6
Update = Callable[[torch.Tensor, torch.Tensor], None]  # weight and gradient, in place


class Layer(nn.Module):
    """A module with one matrix inside a layer."""

    def __init__(self, rows: int = 6, columns: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(columns, rows, bias=False)])

    @property
    def weight(self) -> torch.Tensor:
        return self.layers[0].weight


def gradients() -> Iterator[torch.Tensor]:
    torch.manual_seed(1)
    yield from (torch.randn(6, 4) for _ in range(STEPS))


def check(update: Update, name: str, rtol: float = 1e-4, **settings) -> None:
    """Compare six steps of the optimizer with `update` on the same gradients."""
    torch.manual_seed(0)
    model = Layer()
    optimizer = build_optimizer(optimizer_config(name, lr=LR, **settings), model)
    expected = model.weight.detach().clone()
    for gradient in gradients():
        model.weight.grad = gradient.clone()
        optimizer.step()
        update(expected, gradient)
    torch.testing.assert_close(model.weight.detach(), expected, rtol=rtol, atol=1e-6)


class Moments:
    """Exponential averages of the gradient and its square, and the step's number."""

    def __init__(self, beta1: float, beta2: float) -> None:
        self.betas = beta1, beta2
        self.step = 0
        self.m = self.v = torch.zeros(6, 4)

    def take(self, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.step += 1
        self.m = self.betas[0] * self.m + (1 - self.betas[0]) * g
        self.v = self.betas[1] * self.v + (1 - self.betas[1]) * g**2
        return self.m, self.v

    def corrected(self, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        m, v = self.take(g)
        return m / (1 - self.betas[0] ** self.step), v / (1 - self.betas[1] ** self.step)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


def test_adamw():
    moments = Moments(0.8, 0.95)

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        m, v = moments.corrected(g)
        w.mul_(1 - LR * 0.1).sub_(LR * m / (v.sqrt() + 1e-9))

    check(update, "adamw", betas=[0.8, 0.95], eps=1e-9, weight_decay=0.1)


def test_the_fused_kernel_is_torchs_plain_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    reference = copy.deepcopy(model)
    fused = build_optimizer(optimizer_config("adamw", lr=0.01, betas=[0.9, 0.98], eps=1e-12), model)
    assert isinstance(fused, torch.optim.AdamW) and all(group["fused"] for group in fused.param_groups)
    plain = torch.optim.AdamW(
        parameter_groups(reference, 0.01, 0.01), betas=(0.9, 0.98), eps=1e-12, foreach=False, fused=False
    )
    for _ in range(20):
        inputs = torch.randn(5, 8)
        for network, optimizer in ((model, fused), (reference, plain)):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_stableadamw():
    moments = Moments(0.9, 0.99)

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        m, v = moments.corrected(g)
        rate = LR / max(1.0, (g / v.sqrt()).square().mean().sqrt().item())
        w.mul_(1 - rate * 0.1).sub_(rate * m / v.sqrt())

    check(update, "stableadamw", weight_decay=0.1, eps=1e-12)


def test_radam():
    moments, longest = Moments(0.9, 0.9), 2 / (1 - 0.9) - 1

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        m, v = moments.corrected(g)
        t = moments.step
        length = longest - 2 * t * 0.9**t / (1 - 0.9**t)
        w.mul_(1 - LR * 0.1)
        if length <= 5:
            w.sub_(LR * m)
        else:
            r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
            w.sub_(LR * r * m / v.sqrt())

    check(update, "radam", betas=[0.9, 0.9], weight_decay=0.1, eps=1e-12)


def test_adan():
    state: dict[str, Any] = {"m": 0.0, "d": 0.0, "n": 0.0, "before": None, "step": 0}

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        difference = torch.zeros_like(g) if state["before"] is None else g - state["before"]
        state["m"] = 0.98 * state["m"] + 0.02 * g
        state["d"] = 0.92 * state["d"] + 0.08 * difference
        state["n"] = 0.99 * state["n"] + 0.01 * (g + 0.92 * difference) ** 2
        state["before"], state["step"] = g, state["step"] + 1
        m, d, n = (state[k] / (1 - b ** state["step"]) for k, b in (("m", 0.98), ("d", 0.92), ("n", 0.99)))
        w.sub_(LR / n.sqrt() * (m + 0.92 * d)).div_(1 + LR * 0.1)

    check(update, "adan", weight_decay=0.1, eps=1e-12)


def test_lamb():
    moments = Moments(0.9, 0.99)

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        m, v = moments.take(g)
        u = m / (v.sqrt() + 1e-6) + 0.1 * w
        w.sub_(LR * w.norm() / u.norm() * u)

    check(update, "lamb", betas=[0.9, 0.99], weight_decay=0.1)


def test_lamb_has_no_trust_ratio_for_vectors_and_no_clamp_for_large_weights():
    model = nn.Linear(1, 4)
    with torch.no_grad():
        model.weight.fill_(1000.0)
        model.bias.fill_(1000.0)
    optimizer = build_optimizer(optimizer_config("lamb", lr=LR, weight_decay=0.0, betas=[0.0, 0.0]), model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(model.weight, torch.full((4, 1), 1000.0 * (1 - LR)))
    assert torch.allclose(model.bias, torch.full((4,), 1000.0 - LR))


def test_lion():
    state = {"m": torch.zeros(6, 4)}

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        w.sub_(LR * ((0.9 * state["m"] + 0.1 * g).sign() + 0.1 * w))
        state["m"] = 0.99 * state["m"] + 0.01 * g

    check(update, "lion", weight_decay=0.1)


@pytest.mark.parametrize("relative", [True, False])
def test_adafactor(relative: bool):
    state: dict[str, Any] = {"r": 0.0, "c": 0.0, "step": 0}

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        state["step"] += 1
        beta = min(0.999, 1 - state["step"] ** -0.8)
        state["r"] = beta * state["r"] + (1 - beta) * g.square().mean(1, keepdim=True)
        state["c"] = beta * state["c"] + (1 - beta) * g.square().mean(0, keepdim=True)
        u = g / (state["r"] @ state["c"] / state["r"].mean()).sqrt()
        rate = LR * (max(1e-3, rms(w).item()) if relative else 1.0)
        w.sub_(rate * u / max(1.0, rms(u).item()))

    check(update, "adafactor", scale_parameter=relative)


def test_soap_without_preconditioners_is_adam_after_the_first_step():
    moments, looked = Moments(0.95, 0.95), []

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        if not looked:  # the first gradient only starts the preconditioner
            looked.append(g)
            return
        m, v = moments.corrected(g)
        w.sub_(LR * m / v.sqrt()).mul_(1 - LR * 0.1)

    check(update, "soap", max_precondition_dim=1, eps=1e-12, weight_decay=0.1)


def test_soap_does_not_depend_on_the_basis():
    """Rotating gradients and weight rotates the update, unlike with Adam."""
    torch.manual_seed(3)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    moved = []
    for turn in (torch.eye(4), rotation):
        torch.manual_seed(0)
        model = Layer(4, 4)  # square, because the basis of a null space is arbitrary
        with torch.no_grad():
            model.weight.copy_(model.weight @ turn)
        optimizer = build_optimizer(optimizer_config("soap", lr=LR, eps=1e-12, precondition_frequency=2), model)
        for gradient in gradients():
            model.weight.grad = gradient[:4] @ turn
            optimizer.step()
        moved.append(model.weight.detach() @ turn.T)
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-4)


def test_shampoo_applies_both_inverse_roots_with_the_norm_of_rmsprop():
    """Compare from the second step on, without momentum, so that only the last step counts."""
    left, right, moments = 1e-6 * torch.eye(6), 1e-6 * torch.eye(4), Moments(0.0, 0.9)

    def root(matrix: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix.double())
        return (vectors * (values + 1e-6 * values.max()) ** -0.25 @ vectors.T).float()

    def update(w: torch.Tensor, g: torch.Tensor) -> None:
        nonlocal left, right
        left, right = 0.9 * left + 0.1 * g @ g.T, 0.9 * right + 0.1 * g.T @ g
        grafted = g / moments.take(g)[1].sqrt()
        direction = root(left) @ g @ root(right)
        step = direction * grafted.norm() / direction.norm()
        w.sub_(LR * step)

    check(update, "shampoo", rtol=2e-2, betas=[0.0, 0.9], precondition_frequency=1, block_size=6)
