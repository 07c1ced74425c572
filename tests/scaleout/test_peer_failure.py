"""Failure of a rank: the others exit with one error line, and the same command resumes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cram_composer.scaleout.peer_failure import peer_failure
from tests.conftest import environment, train_command
from tests.scaleout.ranks import STRATEGIES
from tests.tiny_runs import losses, record


def test_only_errors_of_lost_connections_are_recognized(monkeypatch: pytest.MonkeyPatch):
    gone = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:2611\nmore")
    assert peer_failure(gone) is None, "there is no other rank"
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr("composer.utils.dist.get_world_size", lambda: 4)
    line = str(peer_failure(gone))
    assert "another rank exited" in line and "run the same command to resume" in line and "\n" not in line
    assert peer_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert peer_failure(KeyboardInterrupt()) is None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero-2", "zero-3"])
def test_all_ranks_stop_when_one_is_killed_and_resume(strategy: str, tiny_data: Path, tmp_path: Path):
    settings = ["run_name=r", "budget={wall: null, steps: 150}", "checkpoint.interval=0.3s", "train.batch_size=32"]
    settings += ["algorithms.batch_size_ramp=null", "logging.progress_bar=false", *STRATEGIES[strategy]]
    command = train_command(tiny_data, tmp_path, settings, ranks=2)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run, end = tmp_path / "r", time.monotonic() + 240
    while not list(run.glob("checkpoints/*.json")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    (second,) = [pid for pid in children(process.pid) if b"LOCAL_RANK=1" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(second, signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "another rank exited" in line and "Traceback" not in said
    assert record(run)["status"] == "failed" and "another rank exited" in record(run)["reason"]

    resumed = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert record(run)["steps"] == 150 and len(losses(run)) == 150
    assert record(run)["attempts"][1]["started_at_step"] > 0
    assert [json.loads(text)["step"] for text in (run / "trace.jsonl").read_text().splitlines()] == list(range(150))


def children(parent: int) -> list[int]:
    return [int(pid) for task in Path(f"/proc/{parent}/task").glob("*/children") for pid in task.read_text().split()]
