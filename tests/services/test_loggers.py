"""Weights & Biases offline and an MLflow server: a run that is resumed, and its metrics read back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import environment, train_command
from tests.servers import free_ports

HINT = "not installed (pip install -e '.[wandb,mlflow]')"


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    if find_spec("mlflow") is None:
        pytest.skip(f"mlflow is {HINT}")
    (port,) = free_ports(1)
    folder = tmp_path / "mlflow"
    folder.mkdir()
    store = ["--backend-store-uri", f"file://{folder}/store", "--default-artifact-root", f"{folder}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen([*command, *store], stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        ends = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < ends and process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its workers too
        process.wait(30)


def train_twice(tiny_data: Path, tmp_path: Path, setting: str, extra: dict[str, str]) -> None:
    """Train until a checkpoint is saved, stop, and resume to the end."""
    settings = ["data.build=null", "run_name=run", "logging.tensorboard=true", "checkpoint.interval=1s", setting]
    command = train_command(tiny_data, tmp_path, [*settings, "budget={wall: null, steps: 300}"])
    variables = environment() | extra
    first = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ends = time.monotonic() + 240
    while not any((tmp_path / "run").glob("checkpoints/*.json")):
        assert time.monotonic() < ends and first.poll() is None, first.communicate()[1]
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    second = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240)
    assert second.returncode == 0, second.stderr[-3000:]
    assert "Error running" not in second.stderr and "Traceback" not in second.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "finished" and len(record["attempts"]) == 2
    assert any((tmp_path / "run" / "tensorboard").rglob("events*"))


def test_metrics_of_a_resumed_run_are_in_mlflow(mlflow_server: str, tiny_data: Path, tmp_path: Path) -> None:
    setting = f"logging.mlflow={{experiment_name: cram, tracking_uri: '{mlflow_server}'}}"
    train_twice(tiny_data, tmp_path, setting, {})
    import mlflow

    client = mlflow.MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("cram")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    found = {
        entry.step: entry.value
        for run in runs
        for entry in client.get_metric_history(run.info.run_id, "loss/train/total")
    }
    trace = [json.loads(line) for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    assert len(found) > 250
    assert max(found) >= 299
    assert found[max(found)] == pytest.approx(trace[-1]["loss"], rel=1e-4)


@pytest.mark.skipif(find_spec("wandb") is None, reason=f"wandb is {HINT}")
def test_metrics_of_a_resumed_run_are_in_wandb(tiny_data: Path, tmp_path: Path) -> None:
    train_twice(
        tiny_data, tmp_path, "logging.wandb={project: cram}", {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    )
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    steps = set()
    for path in tmp_path.rglob("*.wandb"):
        store = DataStore()
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                names = {item.key or "/".join(item.nested_key) for item in record.history.item}
                if any("loss" in name for name in names):
                    steps.add(record.history.step.num)
    assert len(steps) > 250
