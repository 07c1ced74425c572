"""The state of a run in one line."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cram_composer.analysis.runs.status import run_status, status_line
from cram_composer.errors import CramError


def checkpoint(run: Path, step: int, age: float, complete: bool = True) -> None:
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    file = folder / f"step-{step:08d}.pt"
    file.write_text("")
    os.utime(file, (time.time() - age,) * 2)
    if complete:
        file.with_suffix(".json").write_text("{}")


def test_a_running_run(make_run) -> None:
    run = make_run(running=True, budget=600.0, step_seconds=1.2)
    first = (make_run() / "metrics.jsonl").read_text().splitlines(keepends=True)[:1]
    (run / "metrics.jsonl").write_text("".join(first))
    checkpoint(run, 100, age=125.0)
    checkpoint(run, 150, age=1.0, complete=False)
    status = run_status(run)
    assert status["progress"] == pytest.approx(0.4, abs=0.005)
    assert status["seconds_left"] == pytest.approx(360.0, rel=0.02)
    line = status_line(run, status)
    assert line.startswith(f"{run}: running, ") and "\n" not in line
    for part in ("% of the budget", "held-out loss", "tokens/s", "left", "checkpoint step-00000100 2 min"):
        assert part in line, line


def test_a_running_run_that_writes_no_clock_may_be_dead(make_run) -> None:
    run = make_run(running=True)
    (run / "clock.json").write_text('{"inside": {"train": 5.0}, "step": 3, "clean": false}')
    assert run_status(run)["silent_seconds"] is None
    os.utime(run / "clock.json", (time.time() - 600.0,) * 2)
    assert "running, but silent for 10 min: killed?" in status_line(run, run_status(run))


def test_a_finished_run(make_run, tmp_path: Path) -> None:
    run = make_run(status="stopped-early", reason="loss 8.1 above 7.5")
    line = status_line(run, run_status(run))
    assert "stopped-early (loss 8.1 above 7.5)" in line and "left" not in line and "silent" not in line
    assert run_status(make_run())["progress"] == 1.0
    with pytest.raises(CramError, match="not a run folder"):
        run_status(tmp_path)
