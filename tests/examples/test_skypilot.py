"""examples/skypilot: SkyPilot accepts the file, and its script survives the loss of a machine, with an S3 server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, SMALL
from tests.servers import Bucket
from tests.train.test_training import wait_until

EXAMPLE = REPOSITORY / "examples" / "skypilot" / "cram-1gpu.yaml"
PYTHON = os.environ.get("SKYPILOT_PYTHON")
TASK = yaml.safe_load(EXAMPLE.read_text())

# `cram` of a machine: writes down its arguments. The doctor, which takes minutes, only ends as its machine does.
_CRAM = """#!/bin/sh
echo "$@" >> calls
if [ "$1" = doctor ]; then exit "$DOCTOR"; fi
exec {python} -W ignore -m cram_composer.cli "$@"
"""


def start(machine: Path, bucket: Bucket, overrides: str = "", doctor: int = 0) -> subprocess.Popen[str]:
    """Run the script of the example on a machine, a new one if its folder does not exist."""
    if not machine.exists():
        program = machine / ".venv" / "bin" / "cram"
        program.parent.mkdir(parents=True)
        program.write_text(_CRAM.format(python=sys.executable))
        program.chmod(0o755)
    own = {"BUCKET": f"{bucket.uri}/cram", "RUN": str(REPOSITORY / "yamls" / "cram-cpu.yaml"), "OVERRIDES": overrides}
    values = {name: str(value) for name, value in (TASK["envs"] | own).items()}
    environment = {"DOCTOR": str(doctor), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    environment["CRAM_CACHE"] = str(machine / "cache")
    return subprocess.Popen(
        ["bash", "-c", TASK["run"]],
        cwd=machine,
        env=os.environ | environment | values,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_run_resumes_on_another_machine_after_a_preemption(s3: Bucket, tiny_data: Path, tmp_path: Path):
    s3.upload_folder(tiny_data, "cram/data")
    steps = ["budget=100s", "budget.steps=100", "checkpoint.interval=0.3s", "export.enabled=true"]
    overrides = " ".join([*SMALL, *steps])
    first = start(tmp_path / "first", s3, overrides)
    copies = "cram/runs/cram-1gpu/checkpoints/"
    wait_until(lambda: any(key.endswith(".json") for key in s3.keys(copies)), first)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    shutil.rmtree(tmp_path / "first")
    kept = json.loads(s3.get("cram/runs/cram-1gpu/record.json"))
    assert kept["status"] == "running"

    second = start(tmp_path / "second", s3, overrides)
    output = second.communicate(timeout=300)[0]
    assert second.returncode == 0, output
    assert "resuming from the copy" in output
    record = json.loads(s3.get("cram/runs/cram-1gpu/record.json"))
    assert (record["status"], record["steps"]) == ("finished", 100)
    assert [attempt["reason"] for attempt in record["attempts"]] == ["killed", "finished"]
    assert record["attempts"][1]["started_at_step"] > 0
    assert "cram/runs/cram-1gpu/export/model.safetensors" in s3.keys("cram/runs/")
    calls = (tmp_path / "second" / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["doctor", "train"]
    assert calls[0].split()[1:] == calls[1].split()[1:]


def test_a_machine_that_the_doctor_fails_trains_nothing(s3: Bucket, tmp_path: Path):
    process = start(tmp_path / "ill", s3, doctor=1)
    assert process.communicate(timeout=60)[0] == "" and process.returncode == 1
    (call,) = (tmp_path / "ill" / "calls").read_text().splitlines()
    place = f"{s3.uri}/cram"
    assert call.startswith("doctor ")
    assert call.endswith(f"data.remote={place}/data runs_remote={place}/runs run_name=cram-1gpu")


@pytest.mark.skipif(PYTHON is None, reason="SKYPILOT_PYTHON is not set to the Python of SkyPilot's environment")
def test_skypilot_accepts_the_file_and_requires_a_bucket(tmp_path: Path):
    code = (
        "import sys, json, sky, yaml; config = yaml.safe_load(open(sys.argv[1]))\n"
        "task = sky.Task.from_yaml_config(config, env_overrides=[tuple(pair) for pair in json.loads(sys.argv[2])])\n"
        "resources, = task.resources\n"
        "print(json.dumps([resources.accelerators, resources.use_spot, task.envs['BUCKET'], task.run]))"
    )

    def parse(values: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PYTHON), "-c", code, str(EXAMPLE), json.dumps(list(values.items()))],
            env=os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
        )

    accepted = parse({"BUCKET": "s3://my-bucket/cram"})
    assert accepted.returncode == 0, accepted.stderr[-2000:]
    accelerators, spot, bucket, run = json.loads(accepted.stdout.splitlines()[-1])
    assert (accelerators, spot, bucket, run) == ({"A100-80GB": 1}, True, "s3://my-bucket/cram", TASK["run"])
    refused = parse({})
    assert refused.returncode != 0 and "'BUCKET' is None" in refused.stderr
