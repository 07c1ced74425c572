"""A run resumed on another number of ranks reads the same rows and draws the same masks."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import environment, train_command
from tests.data.data_sets import write_data_set
from tests.tiny_runs import losses

SETTINGS = [
    "budget={steps: 60, wall: 300s}",
    "checkpoint.interval=0.2s",
    "logging.progress_bar=false",
]


def command(root: Path, runs: Path, name: str, ranks: int | None) -> list[str]:
    return train_command(root, runs, [f"run_name={name}", *SETTINGS], ranks)


@pytest.mark.parametrize(("before", "after"), [(None, 2), pytest.param(2, None, marks=pytest.mark.slow)])
def test_a_run_killed_on_some_ranks_resumes_on_others(tmp_path: Path, before: int | None, after: int | None):
    root = write_data_set(tmp_path / "data", 512)
    options: dict[str, Any] = {"env": environment(), "capture_output": True, "text": True, "timeout": 300}
    whole = subprocess.run(command(root, tmp_path, "whole", before), **options)
    assert whole.returncode == 0, whole.stderr

    run = tmp_path / "moved"
    process = subprocess.Popen(
        command(root, tmp_path, "moved", before), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    end = time.monotonic() + 120.0
    while len(list(run.glob("checkpoints/*.json"))) < 2:
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)
    process.kill()
    process.communicate()

    moved = subprocess.run(command(root, tmp_path, "moved", after), **options)
    assert moved.returncode == 0, moved.stderr
    record = json.loads((run / "record.json").read_text())
    assert record["world_size"] == (after or 1) and record["attempts"][1]["started_at_step"] > 0
    starts = record["attempts"]
    assert [start["world_size"] for start in starts] == [before or 1, after or 1]
    first, second = starts[1]["spent_before"], record["ledger"]["inside_total"] - starts[1]["spent_before"]
    assert record["device_hours"] == pytest.approx(((before or 1) * first + (after or 1) * second) / 3600.0)
    # The rows and masks are equal; the losses are summed in another order.
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), abs=2e-4)
    assert record["epochs"] == json.loads((tmp_path / "whole" / "record.json").read_text())["epochs"]
