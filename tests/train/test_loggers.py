"""TensorBoard and the progress lines of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cram_composer.budget.budget import Budget, Limits
from cram_composer.train import loggers
from cram_composer.train.loggers import BudgetProgressBar, PacedTensorboard


def test_tensorboard_gets_one_whole_step_per_second_and_every_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [10.0]
    monkeypatch.setattr(loggers.time, "monotonic", lambda: now[0])
    written = PacedTensorboard(str(tmp_path))
    written.init(SimpleNamespace(run_name="run"), None)
    for step in range(25):
        written.log_metrics({"loss/train/total": float(step)}, step)
        now[0] += 0.125
        written.log_metrics({"lr": 0.5, "metrics/eval/loss": 2.0} if step == 7 else {"lr": 0.25}, step)
    written.writer.close()
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("loss/train/total")] == [0, 8, 16, 24]
    assert [event.step for event in events.Scalars("lr")] == [0, 7, 8, 16, 24]
    assert [event.step for event in events.Scalars("metrics/eval/loss")] == [7]


def progress_state(tokens: int, steps: int) -> SimpleNamespace:
    return SimpleNamespace(timestamp=SimpleNamespace(token=tokens, batch=steps))


def test_a_progress_line_shows_the_mean_throughput_since_the_previous_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = [10.0]
    monkeypatch.setattr(loggers.time, "monotonic", lambda: now[0])
    with open(tmp_path / "console", "w") as stream:
        bar = BudgetProgressBar(Budget(Limits(seconds=3600.0)), stream)
        now[0] += 100.0  # between construction and the loop
        bar.fit_start(progress_state(tokens=5000, steps=7), None)  # resumed
        for step, seconds in enumerate([10.0, 15.0, 5.0, 20.0, 20.0], start=1):
            now[0] += seconds
            bar.log_metrics({"throughput/tokens_per_second": 6000.0 / seconds})  # of the last step only
            bar.batch_end(progress_state(5000 + 6000 * step, 7 + step), None)
    lines = (tmp_path / "console").read_text().splitlines()
    # Three steps in 30 s, then two in 40 s.
    assert [line.split(", ")[3] for line in lines] == ["600 tokens/s", "300 tokens/s"]
    assert lines[0].startswith("cram   0% step 10, ")


def test_a_bar_is_updated_at_most_once_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now, shown = [10.0], []
    monkeypatch.setattr(loggers.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loggers.os, "isatty", lambda number: True)
    with open(tmp_path / "console", "w") as stream:
        bar = BudgetProgressBar(Budget(Limits(seconds=3600.0)), stream)
        bar.train_pbar = SimpleNamespace(pbar=SimpleNamespace(n=0.0, set_postfix_str=shown.append))
        bar.fit_start(progress_state(tokens=0, steps=0), None)
        for step in range(1, 9):
            now[0] += 0.25 if step % 2 else 0.5
            bar.batch_end(progress_state(60 * step, step), None)
    # Steps 3 and 6 end 1.0 s and 1.25 s after the previous update.
    assert [text.split(", ")[3] for text in shown] == ["180 tokens/s", "144 tokens/s"]
