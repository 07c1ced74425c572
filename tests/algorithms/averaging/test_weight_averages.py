"""Weight averages: their content, their snapshots, and their use in place of the trained weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event
from torch import nn

from cram_composer.algorithms.averaging.ema import EMA
from cram_composer.algorithms.averaging.lawa import LAWA
from cram_composer.algorithms.averaging.swa import SWA, with_swa
from cram_composer.algorithms.averaging.weight_average import WeightAverage, saved_average
from cram_composer.budget.budget import Budget, Limits
from cram_composer.budget.schedules import build_schedule
from cram_composer.config.schema.algorithms import EmaConfig, LawaConfig, SwaConfig
from cram_composer.config.schema.schedule import TriangleConfig
from tests.tiny_runs import TinyRuns, losses, record, saved


class Wrapped(nn.Module):
    """A wrapper that prefixes names as DDP does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def linear(value: float = 0.0) -> nn.Module:
    model = nn.Linear(2, 1)
    set_weights(model, value)
    return model


def set_weights(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(value)


def walk(average: WeightAverage, budget: Budget, model: nn.Module, seconds: list[float], end: bool = False) -> None:
    """Take steps that begin at the given seconds of 100, with the seconds as weights."""
    state = SimpleNamespace(model=model, timestamp=SimpleNamespace(batch=1))
    for second in seconds:
        budget.advance(second, 0, 0)
        set_weights(model, second)
        for event in (Event.BATCH_START, Event.FIT_END) if end and second == seconds[-1] else (Event.BATCH_START,):
            assert average.match(event, state)
            average.apply(event, state, None)


def value(average: WeightAverage) -> float | None:
    held = average.average()
    if not held:
        return None
    assert sorted(held) == ["bias", "weight"]
    values = torch.cat([tensor.flatten() for tensor in held.values()])
    assert torch.all(values == values[0])
    return float(values[0])


@pytest.fixture
def budget() -> Budget:
    return Budget(Limits(seconds=100.0))


def swa(budget: Budget) -> SWA:
    return SWA(SwaConfig(swa_start=0.7, update_interval=0.1), budget)


def lawa(budget: Budget) -> LAWA:
    return LAWA(LawaConfig(k=3, update_interval=0.1), budget)


def test_swa_is_the_mean_of_the_weights_at_its_points(budget: Budget):
    average = swa(budget)
    walk(average, budget, linear(), [0, 50, 69])
    assert value(average) is None
    walk(average, budget, linear(), [71, 75, 79, 83, 89, 91, 100], end=True)  # the first step in each tenth
    assert value(average) == pytest.approx((71 + 83 + 91 + 100) / 4)


def test_lawa_is_the_mean_of_the_latest_k(budget: Budget):
    average = lawa(budget)
    walk(average, budget, linear(), [0, 9, 10, 15, 25])
    assert value(average) is None  # only two snapshots
    walk(average, budget, linear(), [30])
    assert value(average) == pytest.approx((10 + 25 + 30) / 3)
    walk(average, budget, linear(), [35, 60, 61])  # a step that passes several points adds one snapshot
    assert value(average) == pytest.approx((25 + 30 + 60) / 3)
    assert all(tensor.device.type == "cpu" for weights in average._latest for tensor in weights.values())


@pytest.mark.parametrize("make", [swa, lawa])
def test_snapshots_are_copies(make: Callable[[Budget], WeightAverage], budget: Budget):
    average, model = make(budget), linear()
    walk(average, budget, model, [72, 82, 92])
    before = value(average)
    set_weights(model, -1.0)
    assert value(average) == before == pytest.approx(82)


@pytest.mark.parametrize("make", [swa, lawa])
def test_a_resumed_average_equals_an_uninterrupted_one(make: Callable[[Budget], WeightAverage], budget: Budget):
    whole = make(budget)
    walk(whole, budget, linear(), [72, 82, 85])
    again = make(budget)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    for average, model in ((whole, linear()), (again, Wrapped(linear()))):  # on one device, and on several
        walk(average, budget, model, [88, 92, 100], end=True)
    assert value(again) == value(whole) is not None
    assert saved_average([("Other", {}), ("Name", again.state_dict())]).keys() == {"weight", "bias"}


def test_restarting_a_finished_run_adds_no_snapshot(budget: Budget):
    average = swa(budget)
    walk(average, budget, linear(), [72, 100], end=True)
    again = swa(budget)
    again.load_state_dict(average.state_dict())
    again.apply(Event.FIT_END, SimpleNamespace(model=linear(5.0)), None)
    assert value(again) == value(average) == 86


@pytest.mark.parametrize("make", [swa, lawa, lambda budget: EMA(EmaConfig(), budget)])
@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped])
def test_evaluation_uses_the_average_and_training_its_weights(make, wrap, budget: Budget):
    average, model = make(budget), wrap(linear(7.0))
    state = SimpleNamespace(model=model, timestamp=SimpleNamespace(batch=1))

    def now() -> set[float]:
        return {float(v) for p in model.parameters() for v in p.flatten()}

    for event in (Event.EVAL_START, Event.EVAL_END):  # before there is an average
        average.apply(event, state, None)
        assert now() == {7.0}
    average.apply(Event.FIT_START, state, None)  # EMA starts with these weights
    for second in (72, 82, 92):
        budget.advance(second, 0, 0)
        average.apply(Event.BATCH_START, state, None)
    set_weights(model, 1.0)
    average.apply(Event.EVAL_START, state, None)
    assert now() == {7.0}
    average.apply(Event.EVAL_END, state, None)
    assert now() == {1.0}


def test_the_rate_is_constant_from_swa_start():
    schedule = build_schedule(TriangleConfig())
    held = with_swa(schedule, SwaConfig(swa_start=0.8, schedule_swa_lr=True))
    assert [held(p) for p in (0.0, 0.4, 0.8)] == [schedule(p) for p in (0.0, 0.4, 0.8)]
    assert held(1.0) == held(0.9) == schedule(0.8) == pytest.approx(0.8)
    assert with_swa(schedule, SwaConfig()) is schedule
    assert with_swa(schedule, None) is schedule


def test_a_run_evaluates_and_ends_with_the_average(tiny_run: TinyRuns, plain_run):
    """SWA every two steps from step 5, at the rate of the plain run, averages its weights 5, 7 and 9."""
    swa = {"swa_start": 0.5, "update_interval": 0.2, "schedule_swa_lr": False}
    run = tiny_run("swa-by-hand", *(f"algorithms.swa.{key}={value}" for key, value in swa.items()))
    assert losses(run) == losses(plain_run)
    average = saved(run)["algorithms"]["SWA"]["average"]
    trained = [saved(run, step)["model"] for step in (5, 7, 9)]
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, torch.stack([weights[name] for weights in trained]).mean(0))
    loss = [record(folder)["metrics"]["validation_loss"] for folder in (run, plain_run)]
    assert loss[0] != loss[1]
