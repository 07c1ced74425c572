"""Azure and Google Cloud Storage: storage, builds, training and the main faults."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cram_composer.storage.client import Storage, StorageError
from tests.conftest import build_tiny_data, environment, train_command
from tests.services.object_stores import BUCKET, Azurite, AzuriteWithIdentities, GoogleEmulator, ObjectBucket

DEADLINE = 6.0
SETTINGS = ["data.build=null", "run_name=run", "logging.progress_bar=false", f"data.deadline={DEADLINE:.0f}s"]


@pytest.fixture(
    params=[
        pytest.param(kind, marks=pytest.mark.skipif(bool(kind.missing()), reason=f"not installed: {kind.missing()}"))
        for kind in (Azurite, GoogleEmulator)
    ],
    ids=["azure", "google"],
)
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectBucket]:
    found = request.param(tmp_path / "server")
    for name, value in found.environment().items():
        monkeypatch.setenv(name, value)
    found.start()
    try:
        yield found.new_bucket(BUCKET)
    finally:
        found.stop()


@pytest.fixture
def data(bucket: ObjectBucket, tmp_path: Path) -> str:
    """Build a data set directly in the bucket; return its URI."""
    build_tiny_data(tmp_path, output=f"{bucket.uri}/data")
    return f"{bucket.uri}/data"


def run(tmp_path: Path, *settings: str, cache: str = "cache", steps: int = 20) -> subprocess.Popen[str]:
    overrides = [*SETTINGS, f"budget={{wall: null, steps: {steps}}}", *settings]
    command = train_command(tmp_path / cache, tmp_path / "runs", overrides)
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=240)
    return process.returncode, out + err


def test_objects_and_what_is_missing(bucket: ObjectBucket, tmp_path: Path) -> None:
    storage = Storage(f"{bucket.uri}/folder", DEADLINE)
    (tmp_path / "file").write_bytes(bytes(range(256)) * 5000)
    storage.upload(tmp_path / "file", "a/b")
    assert storage.list_sizes() == {"a/b": 1_280_000} and storage.size("a/b") == 1_280_000
    assert storage.size("a") is None
    storage.download("a/b", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    with pytest.raises(StorageError, match="folder/nothing: no such object") as missing:
        storage.download("nothing", tmp_path / "again")
    assert missing.value.cause == "missing"
    elsewhere = Storage(f"{bucket.uri}-2/folder", DEADLINE)
    for use in (
        lambda: elsewhere.download("nothing", tmp_path / "again"),
        lambda: elsewhere.upload(tmp_path / "file", "x"),
        elsewhere.list_sizes,
        elsewhere.check_access,
    ):
        with pytest.raises(StorageError, match="no such bucket: bucket-2") as absent:
            use()
        assert absent.value.cause == "bucket"
    storage.delete("a/b")
    storage.delete("a/b")
    assert storage.list_sizes() == {}


def test_a_server_that_is_gone_is_given_up_in_time(bucket: ObjectBucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    storage = Storage(f"{bucket.uri}/folder", DEADLINE)
    storage.upload(tmp_path / "file", "x")
    bucket.server.stop()
    for use in (lambda: storage.download("x", tmp_path / "again"), lambda: storage.upload(tmp_path / "file", "x")):
        started = time.monotonic()
        with pytest.raises(StorageError, match="cannot be reached, tried for 6 s") as gone:
            use()
        assert gone.value.cause == "unreachable" and time.monotonic() - started < 2 * DEADLINE


def test_a_run_streams_mirrors_and_resumes_on_an_empty_machine(bucket: ObjectBucket, data: str, tmp_path: Path) -> None:
    remote = [f"data.remote={data}", f"runs_remote={bucket.uri}/runs", "checkpoint.interval=0.1s"]
    first = run(tmp_path, *remote, steps=100_000)
    storage = Storage(f"{bucket.uri}/runs/run", DEADLINE)
    ends = time.monotonic() + 180
    while not any(name.startswith("checkpoints/") and name.endswith(".json") for name in storage.list_sizes()):
        assert time.monotonic() < ends and first.poll() is None
        time.sleep(0.5)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    shutil.rmtree(tmp_path / "runs")
    second = run(tmp_path, *remote, cache="another", steps=100_000)
    record = tmp_path / "runs" / "run" / "record.json"
    ends = time.monotonic() + 180
    while not (record.exists() and len(json.loads(record.read_text())["attempts"]) == 2):
        assert time.monotonic() < ends and second.poll() is None
        time.sleep(0.5)
    assert json.loads(record.read_text())["attempts"][1]["started_at_step"] > 0
    second.send_signal(signal.SIGTERM)
    status, said = ended(second)
    assert status == 143 or "saved" in said


def test_training_waits_for_a_server_that_restarts(bucket: ObjectBucket, data: str, tmp_path: Path) -> None:
    process = run(tmp_path, f"data.remote={data}", "data.deadline=60s", "data.prefetch=1", steps=60)
    shards = tmp_path / "cache" / "train"
    ends = time.monotonic() + 180
    while not any(shards.rglob("*.mds")):
        assert time.monotonic() < ends and process.poll() is None
        time.sleep(0.05)
    bucket.server.stop()
    time.sleep(5)
    bucket.server.start()
    status, said = ended(process)
    assert status == 0, said
    assert "held-out loss" in said


def test_faults_are_one_line_before_the_clock_starts(
    bucket: ObjectBucket, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(data, DEADLINE)
    shard = next(name for name in storage.list_sizes() if name.startswith("train/") and name.endswith(".mds"))
    storage.delete(shard)
    assert_refused(run(tmp_path, f"data.remote={data}"), f"{shard}: ")
    assert_refused(run(tmp_path, f"data.remote={bucket.uri}-2/data", cache="second"), "no such bucket: bucket-2")
    if isinstance(bucket.server, Azurite):
        monkeypatch.setenv("AZURE_ACCOUNT_ACCESS_KEY", "c2VjcmV0")
        assert_refused(run(tmp_path, f"data.remote={data}", cache="third"), "AZURE_ACCOUNT_ACCESS_KEY")


def assert_refused(process: subprocess.Popen[str], reason: str) -> None:
    status, said = ended(process)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(errors) == 1 and reason in errors[0] and "Traceback" not in said, said


def assert_reads_and_writes(
    server: Azurite, variables: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that a client with these environment variables stores an object and lists it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "file").write_text("text")
    storage = Storage(f"{server.bucket(BUCKET).uri}/folder", DEADLINE)
    storage.upload(tmp_path / "file", "x")
    assert storage.list_sizes() == {"x": 4}


@pytest.mark.skipif(bool(Azurite.missing()), reason=f"not installed: {Azurite.missing()}")
def test_a_shared_access_signature_takes_the_place_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Azurite(tmp_path)
    server.start()
    try:
        server.new_bucket(BUCKET)
        monkeypatch.delenv("AZURE_ACCOUNT_ACCESS_KEY", raising=False)
        assert_reads_and_writes(server, server.sas_environment(), tmp_path, monkeypatch)
        monkeypatch.delenv("AZURE_SAS_TOKEN")  # leaves azure-identity, which finds nothing here
        monkeypatch.setenv("AZURE_ENDPOINT_URL", server.endpoint.replace("http:", "https:"))
        with pytest.raises(StorageError, match="az login, a managed identity") as refused:
            Storage(f"{server.bucket(BUCKET).uri}/folder", DEADLINE).list_sizes()
        assert refused.value.cause == "credentials"
    finally:
        server.stop()


@pytest.mark.skipif(bool(Azurite.missing()), reason=f"not installed: {Azurite.missing()}")
def test_a_managed_identity_needs_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = AzuriteWithIdentities(tmp_path)
    server.start()
    try:
        server.new_bucket(BUCKET)
        with server.identity() as variables:
            assert_reads_and_writes(server, variables, tmp_path, monkeypatch)
            assert set(server.asked) == {"https://storage.azure.com"}
            monkeypatch.setenv("IDENTITY_HEADER", "wrong")
            with pytest.raises(StorageError, match="az login, a managed identity") as refused:
                Storage(f"{server.bucket(BUCKET).uri}/folder", DEADLINE).list_sizes()
            assert refused.value.cause == "credentials"
    finally:
        server.stop()
