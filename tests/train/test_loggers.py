"""What TensorBoard gets of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cram_composer.train import loggers
from cram_composer.train.loggers import PacedTensorboard


def test_a_step_is_written_whole_once_in_a_second_and_evaluations_always(
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
