"""Whole runs in separate processes: budget, record, kill and resume, several ranks."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cram_composer.runs.folder import ROW_LOSSES, RunFolder
from cram_composer.runs.reproduce import reproduce
from tests.conftest import REPOSITORY, Train, environment, train_command
from tests.tiny_runs import last_state, record

SCHEDULED = ["recipes=[crammed-bert,ema,seq-length-warmup]", "algorithms.seq_length_warmup.min_seq_length=8"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def same_run(one: Path, other: Path) -> None:
    """Check that steps, losses, schedules, weights and averages are equal bit by bit."""
    a, b = lines(one / "trace.jsonl"), lines(other / "trace.jsonl")
    timing = {"elapsed", "step_seconds", "data_seconds"}
    assert [{k: v for k, v in step.items() if k not in timing} for step in a] == [
        {k: v for k, v in step.items() if k not in timing} for step in b
    ]
    first, second = last_state(one), last_state(other)
    assert first["model"].keys() == second["model"].keys()
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    averages = [dict(state["algorithms"]).get("EMA", {}).get("average", {}) for state in (first, second)]
    assert averages[0].keys() == averages[1].keys()
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


def start(data: Path, runs: Path, *overrides: str, ranks: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        train_command(data, runs, list(overrides), ranks),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until(condition, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def test_a_run_by_the_clock_stops_on_time_and_adds_up(train: Train, tmp_path: Path):
    result = train("budget=6s", "run_name=r", "export.enabled=true", "eval.interval=0.3", *SCHEDULED)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "r"
    found = record(run)
    steps = lines(run / "trace.jsonl")
    ledger = found["ledger"]
    assert found["status"] == "finished"
    assert 6.0 <= ledger["inside_total"] <= 6.0 + ledger["last_step_seconds"] + 0.2
    assert ledger["inside_total"] == pytest.approx(ledger["wall_seconds"], rel=0.01)
    assert found["device_hours"] == pytest.approx(ledger["inside_total"] / 3600.0)
    assert ledger["inside"]["train"] > 0 and ledger["inside"]["eval"] > 0 and ledger["inside"]["checkpoint"] > 0

    # Reported tokens are those fed to the model, also while rows are short.
    fed = 0
    for number, step in enumerate(steps):
        fed += step["batch_size"] * step["seq_length"]
        assert (step["step"], step["tokens"]) == (number, fed)
    assert found["tokens"] == fed and found["steps"] == len(steps)
    assert {step["seq_length"] for step in steps} == {8, 16, 32}
    # The rate reaches its end within one step.
    assert steps[-1]["lr"] < found["config"]["optimizer"]["lr"] * (1.0 - steps[-2]["progress"]) / 0.25 + 1e-9

    evaluations = lines(run / "metrics.jsonl")
    assert [name for entry in evaluations for name in entry if name == "eval/loss"] == ["eval/loss"] * 2 + []
    assert found["metrics"]["validation_loss"] == pytest.approx(evaluations[-1]["final/loss"])
    assert (run / "export" / "model.safetensors").is_file()
    assert "<svg" in (run / "report.html").read_text()

    again = train("budget=6s", "run_name=r", "export.enabled=true", "eval.interval=0.3", *SCHEDULED)
    assert again.returncode == 0 and "already finished" in again.stdout
    other = train("budget=7s", "run_name=r", "export.enabled=true", "eval.interval=0.3", *SCHEDULED)
    assert other.returncode == 2 and "budget.wall" in other.stderr and other.stderr.count("\n") == 1


def test_a_run_ends_after_a_number_of_epochs(train: Train, tmp_path: Path):
    result = train("budget={epochs: 0.25}", "run_name=r", *SCHEDULED)
    assert result.returncode == 0, result.stderr
    found, steps = record(tmp_path / "r"), lines(tmp_path / "r" / "trace.jsonl")
    last_step = found["epochs"] * steps[-1]["batch_size"] / sum(step["batch_size"] for step in steps)
    assert 0.25 <= found["epochs"] < 0.25 + last_step
    assert found["budget"]["epochs"] == 0.25 and found["status"] == "finished"
    model = found["config"]["model"]
    embeddings = found["data"]["vocab_size"] * model["hidden_size"]
    assert found["embedding_parameters"] == embeddings < found["parameters"]
    total, predicted = np.load(tmp_path / "r" / ROW_LOSSES).sum(axis=0, dtype=np.float64)
    assert total / predicted == pytest.approx(found["metrics"]["validation_loss"], rel=1e-6)
    assert len(np.load(tmp_path / "r" / ROW_LOSSES)) == found["metrics"]["validation_rows"]


def test_a_killed_run_resumes_exactly(train: Train, tiny_data: Path, tmp_path: Path):
    common = [*SCHEDULED, "eval.interval=0.2"]
    original = train("budget=8s", "run_name=original", *common)
    assert original.returncode == 0, original.stderr
    replayed = ["budget={replay: " + str(tmp_path / "original") + "}", "checkpoint.interval=0.5s", *common]
    whole = train(*replayed, "run_name=whole")
    assert whole.returncode == 0, whole.stderr
    same_run(tmp_path / "original", tmp_path / "whole")

    killed = tmp_path / "killed"
    process = start(tiny_data, tmp_path, *replayed, "run_name=killed")
    wait_until(lambda: len(list(killed.glob("checkpoints/*.json"))) >= 2, process)
    process.kill()
    process.communicate()
    assert record(killed)["status"] == "running"
    resumed = train(*replayed, "run_name=killed")
    assert resumed.returncode == 0, resumed.stderr
    same_run(tmp_path / "original", killed)
    attempts = record(killed)["attempts"]
    assert [attempt["reason"] for attempt in attempts] == ["killed", "finished"]
    assert attempts[1]["started_at_step"] > 0


@pytest.mark.slow
def test_a_reproduced_run_takes_the_same_steps(train: Train, tmp_path: Path):
    original = train("budget=6s", "run_name=original", *SCHEDULED)
    assert original.returncode == 0, original.stderr
    made = reproduce(tmp_path / "original", tmp_path / "again.yaml", replay=True)
    assert made.config_differences == []
    assert [line for line in made.environment_differences if not line.startswith("cpu")] == []
    command = [sys.executable, str(REPOSITORY / "train.py"), str(made.path)]
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    same_run(tmp_path / "original", tmp_path / "original-again")


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_one_warning_and_the_steps_since_the_previous_one(
    train: Train, tiny_data: Path, tmp_path: Path
):
    settings = ["budget={wall: 60s, steps: 60}", "checkpoint.interval=0.3s", "run_name=r"]
    process = start(tiny_data, tmp_path, *settings)
    run = tmp_path / "r"
    wait_until(lambda: len(list(run.glob("checkpoints/*.json"))) >= 2, process)
    process.kill()
    process.communicate()
    newest = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    spent = sum(json.loads((run / "clock.json").read_text())["inside"].values())
    result = train(*settings)
    assert result.returncode == 0, result.stderr
    assert (result.stdout + result.stderr).count("truncated") == 1
    found = record(run)
    assert found["steps"] == 60 and found["attempts"][1]["started_at_step"] < int(newest.stem.split("-")[1])
    assert found["ledger"]["inside"]["lost"] > 0
    assert found["attempts"][1]["spent_before"] == pytest.approx(spent, abs=1e-3)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_the_same_command_continues(train: Train, tiny_data: Path, tmp_path: Path, number: int):
    settings = ["budget={wall: 60s, steps: 120}", "run_name=r"]
    run = tmp_path / "r"
    process = start(tiny_data, tmp_path, *settings)
    wait_until(lambda: (run / "trace.jsonl").is_file() and len(lines(run / "trace.jsonl")) > 3, process)
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    assert process.returncode == 128 + number, output
    found = record(run)
    assert found["status"] == "interrupted" and 3 < found["steps"] < 120
    result = train(*settings)
    assert result.returncode == 0, result.stderr
    assert record(run)["steps"] == 120
    assert record(run)["ledger"]["inside"]["lost"] == 0
    assert [step["step"] for step in lines(run / "trace.jsonl")] == list(range(120))


def test_a_second_process_in_a_run_folder_is_rejected(train: Train, tmp_path: Path):
    folder = RunFolder(tmp_path / "r")
    folder.lock()
    try:
        result = train("budget=5s", "run_name=r")
    finally:
        folder.unlock()
    assert result.returncode == 2 and "another process" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_exit_with_a_killed_launcher(train: Train, tiny_data: Path, tmp_path: Path, number: int):
    settings = ["budget={wall: 5m, steps: 120}", "run_name=r"]
    run = tmp_path / "r"
    process = start(tiny_data, tmp_path, *settings, ranks=1)
    wait_until(lambda: (run / "trace.jsonl").is_file() and len(lines(run / "trace.jsonl")) > 3, process)
    process.send_signal(number)
    process.communicate(timeout=30)
    result = train(*settings, ranks=1)  # waits for the rank that is saving, then resumes
    assert result.returncode == 0, result.stderr
    found = record(run)
    assert found["steps"] == 120
    assert [attempt["reason"] for attempt in found["attempts"]] == ["interrupted", "finished"]


@pytest.mark.slow
def test_a_run_killed_after_the_loop_finishes_when_started_again(train: Train, tmp_path: Path):
    settings = ["budget={wall: 60s, steps: 5}", "run_name=r"]
    assert train(*settings).returncode == 0
    run = tmp_path / "r"
    found = record(run)
    (run / "record.json").write_text(json.dumps(found | {"status": "running"}))
    result = train(*settings)
    assert result.returncode == 0, result.stderr
    again = record(run)
    assert again["status"] == "finished" and again["steps"] == 5
    assert again["metrics"]["validation_loss"] == found["metrics"]["validation_loss"]
    assert len(lines(run / "trace.jsonl")) == 5


@pytest.mark.slow
def test_a_replay_with_other_batches_is_rejected(train: Train, tmp_path: Path):
    assert train("budget={wall: 60s, steps: 3}", "run_name=a").returncode == 0
    replay = "budget={replay: " + str(tmp_path / "a") + "}"
    result = train(replay, "run_name=b", "train.device_train_microbatch_size=32")
    assert result.returncode == 2 and "has batch_size 32, but 16 in the trace" in result.stderr


@pytest.mark.slow
def test_shards_come_from_a_remote(train: Train, tiny_data: Path, tmp_path: Path):
    cache = tmp_path / "cache"
    remote = ["budget={wall: null, steps: 60}", f"data.remote={tiny_data}", f"data.local={cache}"]
    result = train(*remote, "run_name=r")
    assert result.returncode == 0, result.stderr
    local = train("budget={wall: null, steps: 60}", "run_name=l")
    assert local.returncode == 0, local.stderr
    same_run(tmp_path / "r", tmp_path / "l")
    shard = next((cache / "train").glob("*/*.mds"))
    assert shard.read_bytes() == (tiny_data / shard.relative_to(cache)).read_bytes()
    (cache / "manifest.json").write_text("{}")
    other = train(*remote, "run_name=o")
    assert other.returncode == 2 and "contains a different data set" in other.stderr


def test_any_transformers_model_trains_and_exports_as_its_own_class(train: Train, tmp_path: Path):
    overrides = "{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}"
    result = train(
        "budget={wall: 60s, steps: 3}",
        "run_name=r",
        "model.architecture=hf",
        "model.hf_name=bert",
        f"model.hf_overrides={overrides}",
        "export.enabled=true",
    )
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "r" / "export" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"] and "auto_map" not in config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.local=/nowhere", "no finished data set"),
        ("device=cuda", "yamls/cram-cpu.yaml"),
        ("model.num_attention_heads=3", "not divisible"),
        ("budget={replay: /nowhere}", "does not exist"),
        ("eval={batch_size: 4096, final_rows: 4096}", "rows of validation"),
        ("eval.batch_size=4096", "eval.final_rows: must be at least one batch"),
    ],
)
def test_invalid_settings_are_reported_in_one_line(train: Train, tmp_path: Path, override: str, message: str):
    if override == "device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = train("run_name=r", "data.build=null", override)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert not (tmp_path / "r" / "record.json").exists()
