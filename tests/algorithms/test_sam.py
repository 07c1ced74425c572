"""Sharpness-aware minimization: its step, and events between its two passes."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer.algorithms.sam.sam import SAMOptimizer
from composer.core import Event, Precision
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.algorithms.sam import SAM
from cram_composer.config.schema.algorithms import SamConfig
from tests.tiny_runs import TinyRuns, losses, record, same, saved


class Problem:
    """A loss with curvature, and Composer's closure of it."""

    def __init__(self, wrap: bool = True, **config: float) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.rows = torch.randn(8, 3)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, weight_decay=0.1)
        self.state = SimpleNamespace(
            timestamp=SimpleNamespace(batch=0),
            optimizers=(self.optimizer,),
            model=self.model,
            precision=Precision.FP32,
        )
        self.seen: list[tuple[list[torch.Tensor], dict]] = []  # weights and arguments of each pass
        self.sam = SAM(SamConfig(**config))
        if wrap:
            assert self.sam.match(Event.INIT, self.state)
            self.sam.apply(Event.INIT, self.state, None)

    def closure(self, **arguments) -> float | None:
        self.seen.append(([p.detach().clone() for p in self.model.parameters()], arguments))
        self.optimizer.zero_grad()
        loss = self.model(self.rows).square().mean()
        loss.backward()
        self.after_pass(len(self.seen))
        return loss.item()

    def after_pass(self, number: int) -> None:
        """Stand in for algorithms that change gradients."""

    def step(self, count: int = 1) -> float | None:
        for _ in range(count):
            loss = self.optimizer.step(closure=self.closure)
            self.state.timestamp.batch += 1
        return loss

    def weights(self) -> list[torch.Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]


def test_the_gradient_is_taken_at_the_distance_rho_uphill():
    problem = Problem(rho=0.05)
    before = problem.weights()
    first_loss = problem.model(problem.rows).square().mean().item()
    assert problem.step() == pytest.approx(first_loss)  # the reported loss is that at the unperturbed weights
    (at, first), (nearby, second) = problem.seen
    assert same(at, before) and (first, second) == ({"ddp_sync": False}, {"loss_dict": {}})
    moved = [b - a for a, b in zip(at, nearby, strict=True)]
    assert math.sqrt(sum(float(m.square().sum()) for m in moved)) == pytest.approx(0.05, rel=1e-4)
    after = Problem(wrap=False)
    for p, m in zip(after.model.parameters(), moved, strict=True):
        with torch.no_grad():
            p.add_(m)
    assert after.model(after.rows).square().mean() > first_loss


def test_its_step_equals_composers():
    ours, theirs = Problem(rho=0.1, interval=2), Problem(wrap=False)
    wrapped = SAMOptimizer(theirs.optimizer, rho=0.1, interval=2)
    ours.step(5)
    for _ in range(5):
        wrapped.step(closure=theirs.closure)
    assert [arguments for _, arguments in ours.seen] == [arguments for _, arguments in theirs.seen]
    for one, other in zip(ours.weights(), theirs.weights(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_with_rho_zero_it_equals_the_optimizer():
    ours, plain = Problem(rho=0.0), Problem(wrap=False)
    ours.step(3)
    plain.step(3)
    assert same(ours.weights(), plain.weights())


def test_weights_are_restored_bit_by_bit():
    problem = Problem(rho=3.0)
    with torch.no_grad():
        problem.model[0].weight.mul_(1e-3)  # adding and subtracting the perturbation would round
    problem.optimizer.param_groups[0].update(lr=0.0, weight_decay=0.0)
    before = problem.weights()
    problem.step()
    assert not same(problem.seen[1][0], before)
    assert same(problem.weights(), before)


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("policy", ["skip-step", "rollback"])
def test_a_step_dropped_by_the_guard_in_either_pass_is_skipped(bad_pass: int, policy: str):
    problem = Problem(rho=0.1)
    checkpoint = [torch.full_like(p, 0.25) for p in problem.weights()]

    def rollback(state, logger) -> bool:
        for p, weights in zip(problem.model.parameters(), checkpoint, strict=True):
            p.detach().copy_(weights)
        problem.sam.load_state_dict(problem.sam.state_dict())  # as checkpoint.restore_weights does
        return True

    guard = NonFiniteGuard(policy, 3, rollback)
    guard._cause = lambda state: "a gradient" if len(problem.seen) == bad_pass else None
    problem.after_pass = lambda number: guard.apply(Event.AFTER_TRAIN_BATCH, problem.state, None)
    before = problem.weights()
    problem.step()
    assert len(problem.seen) == bad_pass
    assert same(problem.weights(), checkpoint if policy == "rollback" else before)
    problem.step()
    assert guard.skipped == 1 and not same(problem.weights(), before)


@pytest.mark.parametrize("overflow_in", [1, 2])
def test_a_step_whose_loss_scale_overflows_is_skipped(overflow_in: int):
    problem = Problem(rho=0.1)
    computed = problem.closure
    problem.closure = lambda **arguments: None if computed(**arguments) and len(problem.seen) == overflow_in else 1.0
    before = problem.weights()
    assert problem.step() is None
    assert same(problem.weights(), before)
    assert problem.optimizer._step_supports_amp_closure


def test_a_failed_pass_restores_the_weights():
    problem = Problem(rho=0.1)

    def fail(number: int) -> None:
        if number == 2:
            raise RuntimeError("out of memory")

    problem.after_pass = fail
    before = problem.weights()
    with pytest.raises(RuntimeError, match="out of memory"):
        problem.step()
    assert same(problem.weights(), before)


def test_the_optimizer_keeps_its_class_and_state():
    problem = Problem(rho=0.1)
    assert type(problem.optimizer) is torch.optim.AdamW
    problem.step(2)
    assert set(next(iter(problem.optimizer.state_dict()["state"].values()))) == {"step", "exp_avg", "exp_avg_sq"}
    problem.optimizer.step(closure=None)  # as torch does to initialize a state before loading
    LambdaLR(problem.optimizer, lambda step: 1.0)  # which wraps a method
    problem.step()


def test_a_run_with_every_second_step(tiny_run: TinyRuns, plain_run: Path):
    run = tiny_run("sam-interval", "algorithms.sam.interval=2")
    assert losses(run)[:2] == losses(plain_run)[:2]  # SAM first changes the second step, after its loss
    assert losses(run)[2] != losses(plain_run)[2]
    assert saved(run)["optimizers"].keys() == {"AdamW"}
    assert record(run)["tokens"] == record(plain_run)["tokens"]
