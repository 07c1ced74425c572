"""The forecast of epochs: one line, from a speed that compilation has no part in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cram_composer.budget.budget import Budget, Limits
from cram_composer.budget.forecast import EpochForecast
from cram_composer.budget.ledger import Ledger


def drive(rows_per_epoch: int, seconds: float = 1000.0, compile_until: int = 0) -> int:
    """Steps of 1 s and 800 tokens, the first ones of 50 s; returns the step at which the forecast was there."""
    clock = [0.0]
    ledger = Ledger(lambda: clock[0])
    budget = Budget(Limits(seconds))
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


def test_it_says_how_many_epochs(capsys: pytest.CaptureFixture[str]):
    assert drive(rows_per_epoch=25_000) == 20
    (line,) = capsys.readouterr().err.splitlines()  # 800,000 tokens in 1,000 steps, 200,000 in an epoch
    assert line == "warning: the budget will take 4.0 epochs over the data (200,000 tokens)"


def test_less_than_an_epoch_is_not_worth_a_line(capsys: pytest.CaptureFixture[str]):
    drive(rows_per_epoch=100_001)
    assert capsys.readouterr().err == ""


def test_compilation_does_not_count(capsys: pytest.CaptureFixture[str]):
    assert drive(rows_per_epoch=25_000, compile_until=4) == 24
    assert "take 3.2 epochs" in capsys.readouterr().err  # 804 steps in what is left


def test_a_long_budget_is_watched_for_longer(capsys: pytest.CaptureFixture[str]):
    assert drive(rows_per_epoch=1_000_000, seconds=10_000.0) == 100
