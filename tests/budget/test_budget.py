"""Budget progress against limits, and replay."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from cram_composer.budget.budget import Budget, Limits, build_budget
from cram_composer.budget.trace import TRACE, JsonLines, TraceStep, read_trace
from cram_composer.config.schema.run import BudgetConfig
from cram_composer.errors import CramError


def step(number: int, progress: float) -> TraceStep:
    return TraceStep(number, number * 1.5, progress, number * 10, 2, 8, 0.25, 1e-3, 5.0, 1.5, 0.1)


def write_trace(folder: Path, steps: list[TraceStep]) -> None:
    (folder / TRACE).write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in steps))


def test_the_limit_reached_first_counts():
    budget = Budget(Limits(seconds=100.0, tokens=1000, steps=10))
    budget.advance(10.0, 500, 3)
    assert budget.progress == 0.5 and not budget.exhausted
    budget.advance(10.0, 500, 10)
    assert budget.progress == 1.0 and budget.exhausted


def test_epochs_end_a_run():
    budget = build_budget(BudgetConfig(wall="1h", epochs=2.5), 1)
    budget.advance(360.0, 1000, 10, epochs=0.5)
    assert budget.progress == 0.2 and budget.describe()["epochs"] == 2.5
    budget.advance(360.0, 1000, 10, epochs=2.5)
    assert budget.exhausted


def test_progress_never_exceeds_one():
    budget = Budget(Limits(seconds=10.0))
    budget.advance(11.0, 0, 5)
    assert budget.progress == 1.0 and budget.exhausted


@pytest.mark.parametrize(("devices", "seconds"), [(1, 24 * 3600), (8, 3 * 3600)])
def test_device_hours_are_shared_by_devices(devices: int, seconds: float):
    assert build_budget(BudgetConfig(device_hours=24.0), devices).limits.seconds == seconds
    assert build_budget(BudgetConfig(device_hours=24.0, wall="2h"), devices).limits.seconds == min(seconds, 7200.0)


def test_a_replay_follows_the_trace_whatever_the_clock_says(tmp_path: Path):
    write_trace(tmp_path, [step(0, 0.0), step(1, 0.3), step(2, 0.9)])
    budget = build_budget(BudgetConfig(replay=str(tmp_path)), 1)
    budget.advance(1e9, 0, 1)
    assert budget.progress == 0.3 and not budget.exhausted
    budget.advance(0.0, 0, 3)
    assert budget.exhausted


def test_a_trace_that_cannot_be_replayed_is_rejected(tmp_path: Path):
    with pytest.raises(CramError, match=r"trace\.jsonl: does not exist"):
        read_trace(tmp_path)
    write_trace(tmp_path, [step(0, 0.0), step(2, 0.3)])
    with pytest.raises(CramError, match="steps are missing"):
        read_trace(tmp_path)
    (tmp_path / TRACE).write_text("{")
    with pytest.raises(CramError, match="not a valid trace"):
        read_trace(tmp_path)


def test_json_lines_are_truncated_to_a_step_without_incomplete_lines(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    lines = JsonLines(path)
    for number in range(4):
        lines.append({"step": number})
    lines.close()
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')
    JsonLines(path).cut(3)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_a_trace_survives_the_round_trip_to_the_last_bit(tmp_path: Path):
    original = step(0, 0.1 + 0.2)
    lines = JsonLines(tmp_path / TRACE)
    lines.append(original)
    lines.close()
    assert read_trace(tmp_path) == [original]
