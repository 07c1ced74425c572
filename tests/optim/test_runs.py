"""Optimizers in whole runs under Composer's trainer: checkpoints, an evaluation, an export, two ranks."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import Train, environment, train_command
from tests.tiny_runs import last_state


def test_schedule_free_exports_its_average(train: Train, tmp_path: Path):
    result = train(
        "recipes=[crammed-bert,schedule-free]",
        "budget={wall: null, steps: 8}",
        "eval.interval=0.5",
        "export.enabled=true",
        "run_name=free",
    )
    assert result.returncode == 0, result.stderr
    saved = last_state(tmp_path / "free")
    average = dict(saved["algorithms"])["ScheduleFreeWeights"]["average"]
    exported = load_file(tmp_path / "free" / "export" / "model.safetensors")
    for name, weight in exported.items():
        assert torch.equal(weight, average[f"model.{name}"]), name
        assert not torch.equal(weight, saved["model"][f"model.{name}"]), "the training weights differ from the average"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "setting", "ranks"), [("shampoo", "precondition_frequency=4", None), ("sophia", "hessian_frequency=4", 2)]
)
def test_interrupted_run_equals_an_uninterrupted_one(
    name: str, setting: str, ranks: int | None, train: Train, tiny_data: Path, tmp_path: Path
):
    """Shampoo has state besides tensors; Sophia draws random labels, here on two ranks."""
    settings = [f"recipes=[crammed-bert,{name}]", "budget={wall: null, steps: 60}", f"optimizer.{setting}"]
    whole = train(*settings, "run_name=whole", ranks=ranks)
    assert whole.returncode == 0, whole.stderr
    command = train_command(tiny_data, tmp_path, [*settings, "run_name=parts"], ranks)
    trace = tmp_path / "parts" / "trace.jsonl"
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while process.poll() is None and not (trace.is_file() and len(trace.read_text().splitlines()) > 6):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    interrupted_at = len(trace.read_text().splitlines())
    assert 6 < interrupted_at < 60, output
    resumed = train(*settings, "run_name=parts", ranks=ranks)
    assert resumed.returncode == 0, resumed.stderr
    first, second = (last_state(tmp_path / run)["model"] for run in ("whole", "parts"))
    assert all(torch.equal(first[key], second[key]) for key in first)
