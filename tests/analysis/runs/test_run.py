"""Reading run folders: finished, running, damaged, and folders without a run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cram_composer.analysis.runs.run import load_run
from cram_composer.errors import CramError


def test_columns_line_up_with_the_trace(make_run) -> None:
    path = make_run()
    lines = [json.loads(line) for line in (path / "trace.jsonl").read_text().splitlines()]
    run = load_run(path)
    assert run.name == "cram-cpu"
    assert run.steps == len(lines)
    assert run.trace["lr"][7] == lines[7]["lr"]
    assert run.trace["tokens"][-1] == run.get("tokens")
    assert run.end == lines[-1]["elapsed"] + lines[-1]["step_seconds"]
    assert run.get("ledger.inside.eval") == 9.5
    assert run.get("ledger.nothing.there") is None


def test_null_losses_become_nan_and_keep_their_place(make_run) -> None:
    loss = load_run(make_run(null_losses=True)).trace["loss"]
    assert np.isnan(loss[::3]).all()
    assert np.isfinite(loss[1::3]).all()


def test_a_running_run_is_as_far_as_its_trace_and_clock(make_run) -> None:
    run = load_run(make_run(running=True))
    assert run.unreadable_lines == 0  # the last line is being written, not damaged
    assert run.get("steps") == run.steps == int(run.trace["step"][-1]) + 1
    assert run.get("tokens") == run.trace["tokens"][-1] > 0
    assert run.get("ledger.inside_total") == pytest.approx(run.end)
    assert run.get("ledger.wall_seconds") is None
    assert len(run.evaluations("eval/loss")["value"]) == 0


def test_a_run_before_its_first_step_loads(make_run) -> None:
    path = make_run(running=True)
    for name in ("trace.jsonl", "metrics.jsonl", "clock.json"):
        (path / name).unlink()
    run = load_run(path)
    assert (run.steps, run.end, run.get("tokens")) == (0, 0.0, 0)


def test_damaged_lines_are_counted_and_left_out(make_run) -> None:
    path = make_run()
    trace = path / "trace.jsonl"
    whole = load_run(path).steps
    lines = trace.read_text().splitlines(keepends=True)
    lines[3] = lines[3][:20] + "\n"
    lines[5] = '{"step": 5}\n'
    trace.write_text("".join(lines))
    run = load_run(path)
    assert (run.steps, run.unreadable_lines) == (whole - 2, 2)


def test_evaluations_leave_out_lines_of_other_metrics(make_run) -> None:
    path = make_run()
    with open(path / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "elapsed": 610.0, "tokens": 10, "final/loss": 4.2}\n')
    points = load_run(path).evaluations("eval/loss")
    assert len(points["value"]) == len(points["elapsed"]) == 8
    assert (np.diff(points["elapsed"]) > 0).all()


def test_folders_that_are_no_run_are_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CramError, match=r"has no record\.json") as caught:
        load_run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(CramError, match="not valid JSON"):
        load_run(tmp_path)
    for other, message in (('{"format_version": 3}', "format_version"), ("[]", "foreign")):
        (tmp_path / "record.json").write_text(other)
        with pytest.raises(CramError, match=message) as caught:
            load_run(tmp_path)
        assert "\n" not in str(caught.value)


def test_reading_needs_nothing_of_training() -> None:
    heavy = ("torch", "composer", "streaming", "transformers", "matplotlib")
    names = ", ".join(f"cram_composer.analysis.{name}" for name in ("report.report", "compare.page", "scaling.report"))
    code = f"import sys, {names}; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
