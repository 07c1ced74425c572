"""The forecast of epochs: one line, from the speed without compilation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cram_composer.budget.budget import Budget, Limits
from cram_composer.budget.forecast import EpochForecast
from cram_composer.budget.ledger import Ledger


def drive(rows_per_epoch: int, seconds: float = 1000.0, compile_until: int = 0, epochs: float | None = None) -> int:
    """Take steps of 800 tokens in 1 s, or 50 s while compiling; return the step of the forecast."""
    clock = [0.0]
    ledger = Ledger(lambda: clock[0])
    budget = Budget(Limits(seconds, epochs=epochs))
    forecast = EpochForecast(budget, ledger, rows_per_epoch, row_tokens=8)
    ledger.switch("train")
    for step in range(200):
        budget.advance(ledger.elapsed(), 800 * step, step)
        state: Any = SimpleNamespace(timestamp=SimpleNamespace(batch=step, token=800 * step))
        forecast.batch_start(state, logger=None)  # type: ignore[arg-type]
        if forecast._done:
            return step
        if step < compile_until:
            with ledger.during("compile"):
                clock[0] += 49.0
        clock[0] += 1.0
    raise AssertionError("no forecast")


def test_it_prints_the_number_of_epochs(capsys: pytest.CaptureFixture[str]):
    assert drive(rows_per_epoch=25_000) == 20
    (line,) = capsys.readouterr().err.splitlines()  # 800,000 tokens in 1,000 steps, 200,000 in an epoch
    assert line == "warning: the budget covers 4.0 epochs of the data (200 k tokens)"


def test_a_limit_in_epochs_needs_no_warning(capsys: pytest.CaptureFixture[str]):
    assert drive(rows_per_epoch=25_000, epochs=10.0) == 0
    assert capsys.readouterr().err == ""


def test_less_than_an_epoch_prints_nothing(capsys: pytest.CaptureFixture[str]):
    drive(rows_per_epoch=100_001)
    assert capsys.readouterr().err == ""


def test_compilation_does_not_count(capsys: pytest.CaptureFixture[str]):
    assert drive(rows_per_epoch=25_000, compile_until=4) == 24
    assert "covers 3.2 epochs" in capsys.readouterr().err  # 804 steps in the remaining budget


def test_a_long_budget_is_measured_for_longer():
    assert drive(rows_per_epoch=1_000_000, seconds=10_000.0) == 100
