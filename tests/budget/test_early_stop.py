"""Early stop: the threshold of the training loss, and patience with the held-out loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from cram_composer.budget.budget import Budget, Limits
from cram_composer.budget.early_stop import EarlyStop
from cram_composer.config.schema.run import EarlyStopConfig
from tests.tiny_runs import TinyRuns, record


class FakeState:
    """A trainer's state after an evaluation with some loss."""

    def __init__(self) -> None:
        self.stopped = False
        self.dataloader_label = "eval"
        self.eval_metrics: dict[str, Any] = {}

    def stop_training(self) -> None:
        self.stopped = True


def evaluate(stop: EarlyStop, losses: list[float], label: str = "eval") -> int:
    """Return the number of evaluations until the run is stopped, or of all."""
    for number, loss in enumerate(losses, start=1):
        state = FakeState()
        state.dataloader_label = label
        state.eval_metrics = {label: {"loss": SimpleNamespace(compute=lambda loss=loss: loss)}}
        stop.eval_end(state, None)
        if state.stopped:
            return number
    return len(losses)


def make(**settings: Any) -> EarlyStop:
    return EarlyStop(EarlyStopConfig(**settings), Budget(Limits(steps=10)), lambda: [8.0])


@pytest.mark.parametrize(
    ("settings", "losses", "evaluations"),
    [
        ({"patience": 2}, [5.0, 4.0, 4.5, 3.9, 4.0, 3.95, 3.0], 6),
        ({"patience": 1, "min_delta": 0.1}, [5.0, 4.8, 4.75, 1.0], 3),
        ({"patience": 3}, [5.0, 4.0, 3.0, 2.0, 1.0], 5),
        ({"patience": 1}, [float("nan"), 1.0], 1),
        ({"loss_above": 9.0}, [5.0, 5.0, 5.0, 5.0], 4),
    ],
)
def test_evaluations_without_improvement_end_the_run(settings: dict, losses: list[float], evaluations: int):
    stop = make(**settings)
    assert evaluate(stop, losses) == evaluations
    assert (stop.reason is not None) == (evaluations < len(losses))


def test_other_evaluations_do_not_count():
    assert evaluate(make(patience=1), [1.0, 2.0, 3.0], label="final") == 3


def test_a_resumed_run_counts_on_and_stays_stopped():
    first, second, third = (make(patience=2) for _ in range(3))
    assert evaluate(first, [3.0, 4.0]) == 2
    second.load_state_dict(first.state_dict())
    assert evaluate(second, [3.5, 1.0]) == 1
    third.load_state_dict(second.state_dict())
    state = FakeState()
    third.fit_start(state, None)
    assert state.stopped and third.reason == second.reason and "held-out loss 3.500" in second.reason


@pytest.mark.parametrize(
    ("loss_above", "losses", "stopped"),
    [
        (7.5, [8.0] * 10, True),
        (8.5, [8.0] * 10, False),
        (7.5, [8.0] * 9, False),  # a cold compilation can take the first tenth of a short budget
        (None, [8.0] * 10, False),
    ],
)
def test_a_threshold_ends_the_run_after_ten_steps(loss_above: float | None, losses: list[float], stopped: bool):
    budget, state = Budget(Limits(steps=10)), FakeState()
    stop = EarlyStop(EarlyStopConfig(loss_above=loss_above, patience=1), budget, lambda: losses)
    budget.advance(0.0, 0, 5)
    stop.batch_end(state, None)
    assert state.stopped == stopped


def test_patience_alone_sets_no_threshold_and_no_condition_is_refused():
    assert EarlyStopConfig(patience=5).loss_above is None
    with pytest.raises(ValidationError, match="has no condition; set patience, loss_above or both"):
        EarlyStopConfig(min_delta=0.1)
    with pytest.raises(ValidationError, match="at: has no effect without loss_above"):
        EarlyStopConfig(patience=5, at=0.3)
    with pytest.raises(ValidationError, match="min_delta: has no effect without patience"):
        EarlyStopConfig(loss_above=7.0, min_delta=0.1)
    recorded = EarlyStopConfig(patience=5).model_dump()
    assert EarlyStopConfig.model_validate(recorded).patience == 5


def test_a_run_without_improvement_ends_early_and_is_evaluated(tiny_run: TinyRuns):
    run = tiny_run("patience", "eval.interval=0.2", "train.early_stop={patience: 1, min_delta: 100.0}")
    found = record(run)
    assert found["status"] == "stopped-early" and found["steps"] < 8
    assert "no improvement" in found["reason"] and found["metrics"]["validation_loss"] > 0
