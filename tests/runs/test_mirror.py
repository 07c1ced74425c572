"""Copies of runs in object storage: real training in separate processes, against a real S3 server."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cram_composer.runs.checkpoints import newest_checkpoint
from cram_composer.runs.folder import RECORD_FORMAT, RunFolder
from cram_composer.runs.mirror import RunMirror
from cram_composer.storage.files import write_json
from tests.conftest import Train
from tests.servers import Bucket
from tests.train.test_training import lines, record, same_run, start, wait_until


def settings(bucket: Bucket, *more: str, steps: int | None = 100) -> list[str]:
    """Return the settings of a run of `steps` steps, or of 15 seconds if None, for tests that interrupt it."""
    budget = "budget=15s" if steps is None else f"budget={{wall: 100s, steps: {steps}}}"
    return [budget, "run_name=r", "checkpoint.interval=0.3s", f"runs_remote={bucket.uri}/runs", *more]


def copied(bucket: Bucket) -> list[str]:
    """List the steps of the resumable checkpoints in the copy, sorted."""
    keys = set(bucket.keys("runs/r/checkpoints/"))
    return sorted(key.removesuffix(".pt")[-8:] for key in keys if key.endswith(".pt") and f"{key[:-3]}.json" in keys)


def descendants(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for children in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in children.read_text().split()]
    return found


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_whole_run_is_copied_and_can_be_used_from_the_copy(train: Train, s3: Bucket, tmp_path: Path):
    result = train(*settings(s3, "export.enabled=true", "eval.interval=0.5"))
    assert result.returncode == 0, result.stderr
    run = tmp_path / "r"
    here = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    here = {name for name in here if not name.startswith(".")}
    assert {"export/model.safetensors", "report.html", "record.json", "tokenizer/tokenizer.json"} < here
    assert {key.removeprefix("runs/r/") for key in s3.keys("runs/")} == here  # including the same checkpoints
    for name in here - {"clock.json"}:
        assert s3.get(f"runs/r/{name}") == (run / name).read_bytes(), name
    assert record(run)["ledger"]["outside"]["upload"] > 0
    assert f"{s3.uri}/runs/r" in result.stdout

    shutil.rmtree(run)
    again = train(*settings(s3, "export.enabled=true", "eval.interval=0.5"))
    assert again.returncode == 0 and f"{s3.uri}/runs/r: already finished" in again.stdout
    assert not run.exists()
    other = train(*settings(s3, "export.enabled=true", "eval.interval=0.5", "seed=3"))
    assert other.returncode == 2 and "seed" in other.stderr and other.stderr.count("\n") == 1
    assert not run.exists()


def test_killed_run_leaves_no_process_and_resumes_from_the_copy_on_a_fresh_machine(
    train: Train, tiny_data: Path, s3: Bucket, tmp_path: Path
):
    original = train("budget={wall: 100s, steps: 150}", "run_name=original")
    assert original.returncode == 0, original.stderr
    replay = ["budget={replay: " + str(tmp_path / "original") + "}", *settings(s3)[1:]]
    run = tmp_path / "r"
    process = start(tiny_data, tmp_path, *replay)
    wait_until(lambda: len(copied(s3)) >= 2, process)
    processes = descendants(process.pid)
    process.kill()
    process.communicate()
    end = time.monotonic() + 15
    while any(map(alive, processes)) and time.monotonic() < end:  # workers look for their parent every 5 s
        time.sleep(0.1)
    assert [pid for pid in processes if alive(pid)] == []
    spent = sum(json.loads(s3.get("runs/r/clock.json"))["inside"].values())
    newest = copied(s3)[-1]

    shutil.rmtree(run)
    resumed = train(*replay)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from the copy" in resumed.stdout
    same_run(tmp_path / "original", run)
    attempts = record(run)["attempts"]
    assert [attempt["reason"] for attempt in attempts] == ["killed", "finished"]
    assert attempts[1]["started_at_step"] == int(newest)
    assert attempts[1]["spent_before"] == pytest.approx(spent, abs=1e-3)
    assert record(run) == json.loads(s3.get("runs/r/record.json"))
    assert len(copied(s3)) == 2


@pytest.mark.slow
def test_a_signal_waits_for_the_copy(train: Train, tiny_data: Path, s3: Bucket, tmp_path: Path):
    run = tmp_path / "r"
    process = start(tiny_data, tmp_path, *settings(s3, "checkpoint.interval=100s", steps=200))
    wait_until(lambda: (run / "trace.jsonl").is_file() and len(lines(run / "trace.jsonl")) > 3, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, output
    steps = record(run)["steps"]
    assert copied(s3) == [f"{steps:08d}"]
    shutil.rmtree(run)
    result = train(*settings(s3, "checkpoint.interval=100s", steps=200))
    assert result.returncode == 0, result.stderr
    found = record(run)
    assert found["steps"] == 200 and found["ledger"]["inside"]["lost"] == 0
    assert [attempt["reason"] for attempt in found["attempts"]] == ["interrupted", "finished"]
    assert [step["step"] for step in lines(run / "trace.jsonl")] == list(range(200))


@pytest.mark.slow
def test_failed_upload_does_not_stop_training_and_is_retried(
    train: Train, tiny_data: Path, s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "r"
    process = start(tiny_data, tmp_path, *settings(s3, "export.enabled=true", steps=None))
    wait_until(lambda: len(copied(s3)) >= 1, process)
    s3.server.put_credentials("new-credentials", "new-credentials")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    found = record(run)
    assert found["status"] == "finished"
    assert (run / "export" / "model.safetensors").is_file() and (run / "report.html").is_file()
    warnings = [line for line in output.splitlines() if line.startswith("warning: runs_remote: ")]
    assert "retrying" not in warnings[-1] and "the local results are complete" in warnings[-1]
    assert all(s3.uri in line and "AWS_ACCESS_KEY_ID" in line for line in warnings)
    assert "Traceback" not in output

    wrong = train(*settings(s3, "export.enabled=true", steps=None))
    assert wrong.returncode == 1 and "already finished" in wrong.stdout
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    again = train(*settings(s3, "export.enabled=true", steps=None))
    assert again.returncode == 0, again.stderr
    assert record(run) == found == json.loads(s3.get("runs/r/record.json"))
    assert copied(s3)[-1] == f"{found['steps']:08d}" and "runs/r/export/model.safetensors" in s3.keys("runs/")


@pytest.mark.slow
def test_temporarily_stopped_server_is_waited_for(train: Train, tiny_data: Path, s3: Bucket, tmp_path: Path):
    process = start(tiny_data, tmp_path, *settings(s3, steps=None))
    wait_until(lambda: len(copied(s3)) >= 1, process)
    s3.server.stop()
    time.sleep(5.0)
    s3.server.start()
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    steps = record(tmp_path / "r")["steps"]
    assert copied(s3)[-1] == f"{steps:08d}" and "warning: runs_remote" not in output
    assert record(tmp_path / "r") == json.loads(s3.get("runs/r/record.json"))


@pytest.mark.parametrize("fault", ["credentials", "bucket", "scheme"])
def test_unwritable_storage_fails_before_the_clock_starts(
    train: Train, s3: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
):
    remote = {"credentials": s3.uri, "bucket": "s3://no-such-bucket", "scheme": "http://a/b"}[fault]
    if fault == "credentials":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    result = train("budget=5s", "run_name=r", f"runs_remote={remote}")
    assert result.returncode == 2, result.stdout
    assert result.stderr.startswith("error: ") and remote in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_two_ranks_resume_from_the_copy(train: Train, s3: Bucket, tmp_path: Path):
    common = settings(s3, "algorithms.batch_size_ramp=null", "train.batch_size=64", steps=20)
    assert train(*common, ranks=2).returncode == 0
    over = train(*common, ranks=2)
    assert over.returncode == 0 and over.stdout.count("already finished") == 1
    kept = json.loads(s3.get("runs/r/record.json"))
    s3.put("runs/r/record.json", json.dumps(kept | {"status": "running"}).encode())
    shutil.rmtree(tmp_path / "r")
    result = train(*common, ranks=2)
    assert result.returncode == 0, result.stderr
    assert record(tmp_path / "r")["attempts"][-1]["started_at_step"] == 20


# --- without training: a run folder with checkpoints of a few bytes ---


def save(folder: RunFolder, step: int) -> Path:
    path = folder.checkpoints / f"step-{step:08d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(1000))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(path.with_suffix(".json"), {"step": step, "bytes": 1000, "sha256": digest})
    write_json(folder.path / "clock.json", {"inside": {"train": float(step)}, "step": step, "clean": True})
    folder.write_record({"format_version": RECORD_FORMAT, "status": "running", "config": {}, "step": step})
    (folder.path / "trace.jsonl").write_text("".join(json.dumps({"step": n}) + "\n" for n in range(step)))
    return path


def keys(bucket: Bucket) -> set[str]:
    return {key.removeprefix("runs/r/") for key in bucket.keys("runs/")}


@pytest.fixture(params=["s3", "rclone_s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return request.getfixturevalue(request.param)


def test_newest_checkpoints_are_kept_in_the_copy(bucket: Bucket, tmp_path: Path):
    folder = RunFolder(tmp_path / "r")
    remote = RunMirror(folder, f"{bucket.uri}/runs", keep=2)
    bucket.put("runs/r/checkpoints/step-00000099.pt", b"damaged, and passed over")
    for step in (1, 2, 3):
        remote.enqueue(save(folder, step))
        assert remote.wait(30) is None
    small = {"clock.json", "record.json", "trace.jsonl"}
    assert keys(bucket) == small | {f"checkpoints/step-0000000{n}.{end}" for n in (2, 3) for end in ("pt", "json")}
    assert list(folder.checkpoints.glob(".sending-*")) == []


def test_newest_checkpoint_replaces_a_waiting_one_and_survives_local_deletion(bucket: Bucket, tmp_path: Path):
    folder = RunFolder(tmp_path / "r")
    remote = RunMirror(folder, f"{bucket.uri}/runs/", keep=5)
    remote.enqueue(save(folder, 1))
    assert remote.wait(30) is None
    bucket.server.pause()
    remote.enqueue(save(folder, 2))
    time.sleep(0.5)  # until the upload has started
    for step in (3, 4, 5):
        remote.enqueue(save(folder, step))
    for step in (1, 2, 3, 4):
        (folder.checkpoints / f"step-0000000{step}.pt").unlink()
    bucket.server.resume()
    assert remote.wait(60) is None
    assert copied(bucket) == ["00000001", "00000002", "00000005"]
    assert [path.name for path in folder.checkpoints.glob(".*")] == []


def test_newest_intact_checkpoint_ahead_of_the_local_ones_is_restored(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = RunFolder(tmp_path / "r")
    remote = RunMirror(folder, f"{bucket.uri}/runs", keep=2)
    assert remote.read_record() is None
    remote.restore()
    assert not folder.path.exists()
    for step in (3, 7):
        remote.enqueue(save(folder, step))
        assert remote.wait(30) is None
    content = bucket.get("runs/r/checkpoints/step-00000007.pt")
    bucket.put("runs/r/checkpoints/step-00000009.pt", b"no .json: its upload was interrupted")
    before = sorted(path.name for path in folder.path.rglob("*"))
    remote.restore()
    assert capsys.readouterr().out == ""  # the copy is not ahead of the local checkpoints
    assert sorted(path.name for path in folder.path.rglob("*")) == before

    shutil.rmtree(folder.path)
    remote.restore()
    assert (folder.checkpoints / "step-00000007.pt").read_bytes() == content
    expected = {"format_version": RECORD_FORMAT, "status": "running", "config": {}, "step": 7}
    assert folder.read_record() == expected and len(lines(folder.path / "trace.jsonl")) == 7

    bucket.put("runs/r/checkpoints/step-00000007.pt", content[::-1])
    shutil.rmtree(folder.path)
    remote.restore()
    found = newest_checkpoint(folder.checkpoints)
    assert found is not None and found.step == 3
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1 and "step-00000007.pt" in warning and "corrupt" in warning


def test_local_time_spent_after_the_copy_still_counts(bucket: Bucket, tmp_path: Path):
    folder = RunFolder(tmp_path / "r")
    remote = RunMirror(folder, f"{bucket.uri}/runs", keep=2)
    remote.enqueue(save(folder, 5))
    assert remote.wait(30) is None
    for path in folder.checkpoints.glob("*"):
        path.unlink()
    write_json(folder.path / "clock.json", {"inside": {"train": 8.0}, "step": 8, "clean": False})
    remote.restore()
    assert newest_checkpoint(folder.checkpoints) is not None
    clock = folder.read_clock()
    assert clock is not None and clock["inside"] == {"train": 8.0}


def test_copy_in_a_folder(tmp_path: Path):
    folder = RunFolder(tmp_path / "here" / "r")
    remote = RunMirror(folder, str(tmp_path / "there"), keep=2)
    remote.check_access()
    remote.enqueue(save(folder, 5))
    assert remote.wait(30) is None and remote.upload_files() is None and remote.finalize() is None
    shutil.rmtree(folder.path)
    remote.restore()
    assert newest_checkpoint(folder.checkpoints) is not None


def test_a_slow_storage_does_not_hold_up_the_end_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path / "here" / "r")
    remote = RunMirror(folder, str(tmp_path / "there"), keep=2)
    save(folder, 5)
    write_json(folder.path / "record.json", {"status": "finished"})
    monkeypatch.setattr(remote._storage, "deadline", 0.1)
    monkeypatch.setattr(remote._storage, "upload", lambda path, name: time.sleep(5.0))
    started = time.monotonic()
    problem = remote.upload_in_time()
    assert time.monotonic() - started < 3.0
    assert isinstance(problem, TimeoutError) and "there/r: not copied within" in str(problem)
    monkeypatch.undo()
    assert remote.upload_in_time() is None and remote.finalize_in_time() is None


def test_process_exits_during_an_upload(s3: Bucket, tmp_path: Path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cram_composer.runs.folder import RunFolder; from cram_composer.runs.mirror import RunMirror\n"
        "from tests.runs.test_mirror import save\n"
        f"folder = RunFolder(Path({str(tmp_path / 'r')!r})); remote = RunMirror(folder, {s3.uri!r}, 2)\n"
        "remote.check_access(); print('ready', flush=True); sys.stdin.readline()\n"
        "remote.enqueue(save(folder, 1)); time.sleep(0.5)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    s3.server.pause()
    started = time.monotonic()
    process.communicate("go\n", timeout=30)
    assert process.returncode == 0 and time.monotonic() - started < 15
