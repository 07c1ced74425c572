"""Slurm itself: builds, sweeps and evaluations as arrays, a cancelled job, a training job that is preempted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cram_composer.jobs.slurm import SlurmRunner, left_over
from tests.conftest import REPOSITORY, SMALL, write_text
from tests.jobs import calls
from tests.jobs.test_local import wait_until
from tests.services.slurm_daemons import missing_programs, slurm

pytestmark = [
    pytest.mark.skipif(bool(missing_programs()), reason=f"not installed: {', '.join(missing_programs())}"),
    pytest.mark.skipif(os.getuid() != 0, reason="slurmd starts jobs as root only"),
]
ARRAY = {"timeout_min": 10, "cpus_per_task": 1, "slurm_mem": "1000"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm"), cpus=2) as environment:
        yield environment


@pytest.fixture
def here(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the cluster, and its jobs this repository."""
    for name, value in cluster.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def cram(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "cram_composer.cli", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "sacct" not in done.stderr
    return done.stdout + done.stderr


def write_build(folder: Path) -> Path:
    write_text(folder / "text.txt", documents=300)
    (folder / "mine.yaml").write_text(
        f"name: mine\noutput: {folder}/out\nwork: {folder}/work\nvalidation_fraction: 0.1\n"
        f"sources: [{{kind: files, paths: [{folder}/text.txt], document: line}}]\n"
        "tokenizer: {vocab_size: 200}\npacking: {sequence_length: 32, block_rows: 16}\n"
    )
    return folder / "mine.yaml"


@pytest.fixture(scope="module")
def run_of_cram(cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build data in an array; return the folder, for runs."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (cluster | {"PYTHONPATH": str(REPOSITORY)}).items():
            patch.setenv(name, value)
        settings = "slurm={timeout_min: 10, slurm_mem: '1000'}"
        cram("data", "build", str(write_build(folder)), "--partitions", "2", "executor=slurm", settings, folder=folder)
    return folder


def test_a_data_build_in_arrays_makes_the_shards_of_a_local_one(run_of_cram: Path, tmp_path: Path) -> None:
    cram("data", "build", str(write_build(tmp_path)), "--partitions", "2", folder=tmp_path)
    found, wanted = (
        {path.relative_to(root / "out"): path.read_bytes() for path in (root / "out").rglob("*.mds")}
        for root in (run_of_cram, tmp_path)
    )
    assert found == wanted and len(found) >= 2


def test_a_cancelled_job_is_noticed_without_accounting(here: None, tmp_path: Path, caplog) -> None:
    with SlurmRunner(tmp_path / "slurm", ARRAY, "sweep") as runner:
        results = runner.run([partial(calls.sleep, 600, "late"), partial(calls.sleep, 0, "value")])
        assert next(results).value == "value"
        (job_id,) = [job for job in json.loads((tmp_path / "slurm" / "jobs.json").read_text()) if job.endswith("_0")]
        assert left_over(tmp_path / "slurm") == [f"{job_id.partition('_')[0]}_{index}" for index in (0, 1)]
        started = time.monotonic()
        subprocess.run(["scancel", job_id], check=True)
        result = next(results)
        assert result.index == 0 and result.killed and "has not produced any output" in result.error
        assert time.monotonic() - started < 120
    assert "sacct" not in caplog.text


def test_a_sweep_and_an_evaluation_in_arrays(here: None, run_of_cram: Path) -> None:
    folder = run_of_cram
    settings = [*SMALL, "device=cpu", "budget={wall: null, steps: 5}", f"data.local={folder}/out", "data.build=null"]
    settings += ["export={enabled: true, sentences: []}"]
    settings.remove("export.enabled=false")
    (folder / "two.yaml").write_text(
        f"run: {REPOSITORY}/yamls/cram-cpu.yaml\nseeds: 1\nvariants:\n  base: {{}}\n"
        "  slow: {set: {optimizer.lr: 0.0001}}\n"
        f"set:\n" + "".join(f"  {key}: {value}\n" for key, _, value in (s.partition("=") for s in settings))
    )
    options = ["--slurm", "timeout_min=10", "slurm_mem=1000", "cpus_per_task=1"]
    cram("sweep", "two.yaml", *options, "--yes", folder=folder)
    runs = sorted(path.parent for path in folder.rglob("record.json"))
    assert len(runs) == 2 and all(json.loads((run / "record.json").read_text())["status"] == "finished" for run in runs)
    for name in ("train", "dev"):
        rows = "".join(f"ba ke {index},{index % 2}\n" for index in range(40))
        (folder / f"{name}.csv").write_text("text,label\n" + rows)
    files = ["--train", "train.csv", "--validation", "dev.csv", "--text", "text", "--label", "label"]
    said = cram("eval", str(runs[0]), *files, "--seeds", "2", "--set", "epochs=1", *options, folder=folder)
    assert "acc" in said


def test_a_preempted_training_job_goes_on(here: None, run_of_cram: Path, tmp_path: Path) -> None:
    settings = [*SMALL, "device=cpu", "budget={wall: null, steps: 4000}", f"data.local={run_of_cram}/out"]
    settings += ["data.build=null", "run_name=preempted", f"runs_dir={tmp_path}", "checkpoint.interval=1s"]
    arguments = " ".join(f"'{setting}'" for setting in settings)
    (tmp_path / "job.sh").write_text(
        "#!/bin/bash\n#SBATCH --requeue --open-mode=append --output=job.log --mem=2000\n"
        f"cd {REPOSITORY}\nexec {sys.executable} train.py yamls/cram-cpu.yaml {arguments}\n"
    )
    submitted = subprocess.run(["sbatch", "job.sh"], cwd=tmp_path, capture_output=True, text=True, check=True)
    job = submitted.stdout.split()[-1]
    run = tmp_path / "preempted"
    wait_until(lambda: any(run.glob("checkpoints/*.json")), 120)
    subprocess.run(["scontrol", "requeue", job], check=True)

    def attempts() -> list[dict]:
        try:
            return json.loads((run / "record.json").read_text())["attempts"]
        except FileNotFoundError:
            return []

    wait_until(lambda: len(attempts()) == 2, 240)
    assert attempts()[1]["started_at_step"] > 0
    subprocess.run(["scancel", job], check=True)
