"""Jobs as Slurm arrays, with submitit's local executor or stand-ins for Slurm's commands."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from cram_composer.errors import CramError
from cram_composer.jobs.slurm import SlurmRunner, cancel_left_over, left_over
from tests.conftest import SlurmHere
from tests.jobs import calls
from tests.jobs.test_local import is_alive, wait_until

SETTINGS = {"timeout_min": 5}


def test_a_failed_and_a_killed_job_are_results_and_the_others_end(
    tmp_path: Path, slurm_here: SlurmHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("submitit.Job._results_timeout_s", 1.0)  # the wait for the result of the killed job
    jobs = [partial(calls.fail, "no text"), calls.kill_itself, calls.crash, partial(calls.sleep, 0, "value")]
    with SlurmRunner(tmp_path / "slurm", SETTINGS, "sweep") as runner:
        results = sorted(runner.run(jobs), key=lambda result: result.index)
    assert slurm_here.sizes == [4] and slurm_here.asked == [SETTINGS]
    assert [result.killed for result in results] == [False, True, False, False]
    assert results[0].error == f"no text; logs in {tmp_path / 'slurm'}"
    assert "has not produced any output" in results[1].error and "\n" not in results[1].error
    assert results[2].error == f"ValueError: two lines; logs in {tmp_path / 'slurm'}"
    assert results[3].value == "value"
    ids = json.loads((tmp_path / "slurm" / "jobs.json").read_text())
    assert len(set(ids)) == 4


def test_a_job_that_needs_another_is_in_a_later_array(tmp_path: Path, slurm_here: SlurmHere) -> None:
    log = tmp_path / "log"
    jobs = [partial(calls.append, log, "second"), partial(calls.append, log, "first")]
    with SlurmRunner(tmp_path / "slurm", SETTINGS, "eval") as runner:
        assert [result.index for result in runner.run(jobs, after={0: 1})] == [1, 0]
    assert slurm_here.sizes == [1, 1]
    assert log.read_text() == "first second "
    assert len(json.loads((tmp_path / "slurm" / "jobs.json").read_text())) == 2


def test_a_job_that_left_the_queue_without_a_result_is_killed(
    tmp_path: Path, no_slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("submitit.Job._results_timeout_s", 0.1)
    monkeypatch.setattr("cram_composer.jobs.slurm._warned", set())
    put(no_slurm / "srun", "exit 0")
    put(no_slurm / "sbatch", "echo Submitted batch job 7")
    queue = tmp_path / "queue"
    queue.write_text("7_0 CONFIGURING None\n7_1 PENDING PartitionConfig\n")
    put(no_slurm / "squeue", f"cat {queue}; echo asked >> {tmp_path / 'log'}; echo '7_0 COMPLETING None' > {queue}")
    put(no_slurm / "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    put(no_slurm / "scancel", "exit 0")
    with SlurmRunner(tmp_path / "slurm", SETTINGS, "eval") as runner:
        results = runner.run([calls.process_id] * 2)
        cancelled = next(results)
        assert (cancelled.index, cancelled.killed) == (1, True) and "has not produced any output" in cancelled.error
        queue.write_text("")
    assert (tmp_path / "log").read_text().count("asked") >= 2
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: Slurm does not start jobs: PartitionConfig; compare cpus_per_task")


def test_leaving_the_runner_cancels_the_jobs(tmp_path: Path, slurm_here: SlurmHere) -> None:
    waiting = tmp_path / "never.waiting"
    with pytest.raises(KeyboardInterrupt), SlurmRunner(tmp_path / "slurm", SETTINGS, "eval") as runner:
        for _ in runner.run([partial(calls.wait_for, tmp_path / "never"), calls.process_id]):
            wait_until(lambda: waiting.exists() and waiting.read_text() != "")
            raise KeyboardInterrupt
    wait_until(lambda: not is_alive(int(waiting.read_text())))


def put(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_what_slurm_refuses_is_one_line(tmp_path: Path, no_slurm: Path) -> None:
    with pytest.raises(CramError, match=r"^eval: Slurm cannot be used: .*srun"):
        list(SlurmRunner(tmp_path / "slurm", SETTINGS, "eval").run([calls.process_id]))
    put(no_slurm / "srun", "exit 0")
    put(no_slurm / "sbatch", "echo 'sbatch: error: invalid partition specified: gpus' >&2; exit 1")
    with pytest.raises(CramError, match=r"^eval: Slurm cannot be used: .*invalid partition specified: gpus") as caught:
        list(SlurmRunner(tmp_path / "slurm", SETTINGS, "eval").run([calls.process_id] * 3))
    assert "\n" not in str(caught.value) and "array of 3 jobs" in str(caught.value)
    with pytest.raises(CramError, match=r"^eval: Slurm cannot be used: .*nonsense"):
        list(SlurmRunner(tmp_path / "slurm", {"nonsense": 1}, "eval").run([calls.process_id]))


def test_jobs_of_a_killed_runner_are_found_and_cancelled(tmp_path: Path, no_slurm: Path) -> None:
    folder = tmp_path / "slurm"
    assert left_over(folder) == []
    folder.mkdir()
    (folder / "jobs.json").write_text(json.dumps(["7_0", "7_1", "8_0"]))
    assert cancel_left_over(folder) == 0, "no Slurm on this machine"
    queue = tmp_path / "queue"
    queue.write_text("6\n7\n7\n")
    put(no_slurm / "squeue", f"case $* in *--array*) exit 0;; esac; cat {queue}")
    put(no_slurm / "scancel", f"echo $1 >> {tmp_path / 'cancelled'}")
    assert left_over(folder) == ["7_0", "7_1"]
    assert cancel_left_over(folder) == 2
    assert (tmp_path / "cancelled").read_text().split() == ["7_0", "7_1"]
    put(no_slurm / "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(CramError, match="squeue") as caught:
        left_over(folder)
    assert "\n" not in str(caught.value)
