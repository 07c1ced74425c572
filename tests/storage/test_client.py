"""Object storage against real servers: operations, and every kind of failure."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cram_composer.config import units
from cram_composer.errors import ConfigError, CramError
from cram_composer.storage import providers
from cram_composer.storage.client import Storage, StorageError, is_remote
from tests.servers import Bucket


@pytest.fixture(params=["s3", "rclone_s3"])
def bucket(request: pytest.FixtureRequest) -> Bucket:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["s3", "rclone_s3", "folder"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return storage below a path of a bucket, and storage in a folder."""
    if request.param == "folder":
        return Storage(str(tmp_path / "far" / "a" / "b"))
    return Storage(f"{request.getfixturevalue(request.param).uri}/a/b/")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def failing(operation) -> StorageError:
    """Return the error of an operation that must fail with a message of one line."""
    with pytest.raises(StorageError) as caught:
        operation()
    assert "\n" not in str(caught.value) and isinstance(caught.value, CramError)
    return caught.value


def test_write_list_size_read_and_delete(storage: Storage, tmp_path: Path):
    contents = {"one.json": b"{}", "train/00000/shard.mds": os.urandom(70_000), "train-b/x": b"x", "empty": b""}
    for name, content in contents.items():
        storage.upload(write(tmp_path / "here" / name, content), name)
    sizes = {name: len(content) for name, content in contents.items()}
    assert storage.list_sizes() == sizes
    assert storage.list_sizes("train") == {"train/00000/shard.mds": 70_000}  # a folder, not a name prefix
    assert storage.list_sizes("nothing") == {}
    assert {name: storage.size(name) for name in contents} == sizes
    assert storage.size("two.json") is None
    for name, content in contents.items():
        storage.download(name, tmp_path / "back" / name)
        assert (tmp_path / "back" / name).read_bytes() == content
    assert files(tmp_path / "back") == sorted(contents)

    storage.upload(write(tmp_path / "here" / "one.json", b"{1}"), "one.json")
    storage.download("one.json", tmp_path / "back" / "one.json")
    assert (tmp_path / "back" / "one.json").read_bytes() == b"{1}"
    storage.delete("one.json")
    storage.delete("one.json")
    assert storage.size("one.json") is None and len(storage.list_sizes()) == 3
    storage.check_access(write=True)
    storage.check_access()
    assert len(storage.list_sizes()) == 3


def test_listing_of_several_pages(s3: Bucket):
    client = s3.server.client()
    for number in range(1100):  # a page is at most 1,000
        client.put_object(Bucket=s3.name, Key=f"p/{number:04d}", Body=b"x" * (number % 7))
    assert Storage(s3.uri).list_sizes("p") == {f"p/{number:04d}": number % 7 for number in range(1100)}


def test_names_with_special_characters(storage: Storage, tmp_path: Path):
    for name in ("with space/a+b=c.txt", "ümlaut/日本", "[1]*?.txt", "percent%20.txt"):
        storage.upload(write(tmp_path / "f", name.encode()), name)
        storage.download(name, tmp_path / "back" / name)
        assert (tmp_path / "back" / name).read_text() == name
        assert storage.size(name) == len(name.encode())
    assert len(storage.list_sizes()) == 4 and len(files(tmp_path / "back")) == 4


def test_missing_object_and_missing_bucket_are_distinguished(bucket: Bucket, tmp_path: Path):
    target, there = tmp_path / "target", write(tmp_path / "there", b"x")
    storage = Storage(f"{bucket.uri}/data")
    error = failing(lambda: storage.download("no", target))
    assert error.cause == "missing" and error.uri == f"{bucket.uri}/data/no" and error.uri in str(error)
    elsewhere = Storage("s3://no-such-bucket/data")
    for operation in (
        lambda: elsewhere.download("no", target),
        lambda: elsewhere.upload(there, "no"),
        lambda: elsewhere.size("no"),
        elsewhere.list_sizes,
        elsewhere.check_access,
        lambda: elsewhere.check_access(write=True),
    ):
        error = failing(operation)
        assert error.cause == "bucket" and "no-such-bucket" in str(error)
    assert files(tmp_path) == ["there"]
    assert failing(lambda: storage.upload(target, "no")).cause == "missing"


@pytest.mark.parametrize("change", ["key", "secret", "none"])
def test_wrong_credentials_fail_immediately(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    bucket.put("data/here", b"x")
    if change == "none":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        name = "AWS_ACCESS_KEY_ID" if change == "key" else "AWS_SECRET_ACCESS_KEY"
        monkeypatch.setenv(name, "something-else")
    storage = Storage(f"{bucket.uri}/data")
    there = write(tmp_path / "there", b"x")
    started = time.monotonic()
    for operation in (
        lambda: storage.download("here", tmp_path / "target"),
        lambda: storage.download("no", tmp_path / "target"),
        lambda: storage.upload(there, "here"),
        lambda: storage.size("here"),
        lambda: storage.size("no"),
        lambda: storage.delete("here"),
        storage.list_sizes,
        storage.check_access,
    ):
        error = failing(operation)
        assert error.cause == "credentials" and "AWS_ACCESS_KEY_ID" in str(error)
    assert time.monotonic() - started < 60
    assert files(tmp_path) == ["there"]


def test_changed_credentials_are_reread(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bucket.put("here", b"x")
    storage = Storage(bucket.uri)
    assert storage.size("here") == 1
    bucket.server.put_credentials("a-newer-key", "a-newer-secret")
    assert failing(lambda: storage.size("here")).cause == "credentials"
    assert failing(lambda: storage.download("here", tmp_path / "f")).cause == "credentials"
    for name, value in bucket.environment().items():
        monkeypatch.setenv(name, value)
    storage.download("here", tmp_path / "f")
    # If they change while a client works, a new client replaces it without an error.
    kept = write(tmp_path / "credentials", b"")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(kept))
    for key in ("a-newer-key", "the-newest-key"):
        bucket.server.put_credentials(key, "a-newer-secret")
        kept.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=a-newer-secret\n")
        assert storage.size("here") == 1


def test_stopped_server_fails_at_the_deadline(bucket: Bucket, tmp_path: Path):
    bucket.put("here", b"x")
    storage = Storage(bucket.uri, deadline=3.0)
    storage.check_access()
    bucket.server.stop()
    for operation in (
        lambda: storage.download("here", tmp_path / "f"),
        lambda: storage.size("here"),
        storage.check_access,
    ):
        started = time.monotonic()
        error = failing(operation)
        assert error.cause == "unreachable" and bucket.server.endpoint in str(error)
        assert 3.0 <= time.monotonic() - started < 20.0
    assert files(tmp_path) == []


def test_silent_server_fails_at_the_deadline(bucket: Bucket, tmp_path: Path):
    bucket.put("here", b"x")
    storage = Storage(bucket.uri, deadline=3.0)
    bucket.server.pause()
    started = time.monotonic()
    assert failing(lambda: storage.download("here", tmp_path / "f")).cause == "unreachable"
    assert 3.0 <= time.monotonic() - started < 20.0
    assert files(tmp_path) == []


@pytest.mark.slow
def test_restarted_server_is_waited_for(bucket: Bucket, tmp_path: Path):
    bucket.put("here", b"content")
    storage = Storage(bucket.uri, deadline=60.0)
    assert storage.size("here") == 7
    bucket.server.stop()
    back = threading.Timer(5.0, bucket.server.start)
    back.start()
    started = time.monotonic()
    storage.download("here", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"content"
    assert 5.0 < time.monotonic() - started < 50.0
    back.join()


@contextmanager
def cutting_proxy(port: int, limit: int, times: int) -> Iterator[int]:
    """Forward connections to `port`, cutting the first `times` answers after `limit` bytes."""
    left = [times]
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on(source: socket.socket, sink: socket.socket, cut: bool) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                if cut and left[0] and passed + len(data) > limit:
                    left[0] -= 1
                    sink.sendall(data[: limit - passed])
                    break
                sink.sendall(data)
                passed += len(data)
        except OSError:
            pass  # the other direction has closed it
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=pass_on, args=(client, server, False), daemon=True).start()
            threading.Thread(target=pass_on, args=(server, client, True), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_truncated_answer_is_retried(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = os.urandom(3_000_000)
    bucket.put("here", content)
    with cutting_proxy(bucket.server.port, limit=1_000_000, times=2) as port:
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        Storage(bucket.uri).download("here", tmp_path / "f")
        assert (tmp_path / "f").read_bytes() == content and files(tmp_path) == ["f"]


def test_download_is_atomic(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bucket.put("here", os.urandom(3_000_000))
    write(tmp_path / "f", b"before")
    with cutting_proxy(bucket.server.port, limit=1_000_000, times=1000) as port:
        monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        assert failing(lambda: Storage(bucket.uri, 2.0).download("here", tmp_path / "f")).cause == "unreachable"
    assert (tmp_path / "f").read_bytes() == b"before" and files(tmp_path) == ["f"]


def test_upload_is_atomic(s3: Bucket, tmp_path: Path):
    s3.put("here", b"before")
    big = tmp_path / "big"
    with open(big, "wb") as file:
        file.truncate(300_000_000)
    stopping = threading.Timer(0.15, s3.server.pause)
    stopping.start()
    assert failing(lambda: Storage(s3.uri, 2.0).upload(big, "here")).cause == "unreachable"
    stopping.join()
    s3.server.resume()
    assert s3.get("here") == b"before"


def test_process_killed_during_a_download_leaves_no_file(s3: Bucket, tmp_path: Path):
    client = s3.server.client()
    with open(tmp_path / "big", "wb") as file:
        file.truncate(100_000_000)
    client.upload_file(str(tmp_path / "big"), s3.name, "big")
    (tmp_path / "big").unlink()
    code = (
        "from pathlib import Path; from cram_composer.storage.client import Storage;"
        f"Storage({s3.uri!r}).download('big', Path({str(tmp_path / 'f')!r}))"
    )
    with cutting_proxy(s3.server.port, limit=1 << 60, times=0) as port:
        environment = os.environ | {"S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        process = subprocess.Popen([sys.executable, "-c", code], env=environment)
        while not any(path.stat().st_size for path in tmp_path.glob(".f.*")) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        process.wait()
    assert not (tmp_path / "f").exists()


def test_full_disk_fails_immediately(s3: Bucket, tmp_path: Path):
    mount = [*("unshare", "-Urm", "sh", "-c"), 'mount -t tmpfs -o size=1m none "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    s3.put("here", bytes(3_000_000))
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cram_composer.storage.client import StorageError, Storage\n"
        f"for uri in ({s3.uri!r}, sys.argv[1]):\n"
        f"    try: Storage(uri).download('here', Path({str(tmp_path)!r}) / 'f')\n"
        f"    except StorageError as e: print(e.cause, '|', e, '|', list(Path({str(tmp_path)!r}).iterdir()))"
    )
    (tmp_path.parent / "far").mkdir()
    write(tmp_path.parent / "far" / "here", bytes(3_000_000))
    started = time.monotonic()
    printed = subprocess.check_output([*mount, sys.executable, "-c", code, str(tmp_path.parent / "far")], text=True)
    assert time.monotonic() - started < 90
    lines = printed.splitlines()
    assert len(lines) == 2
    for line in lines:
        cause, message, left = line.split(" | ")
        assert cause == "disk-full" and str(tmp_path / "f") in message and left == "[]"


def test_unwritable_path_fails(storage: Storage, tmp_path: Path):
    storage.upload(write(tmp_path / "x", b"x"), "x")
    (tmp_path / "folder" / "f").mkdir(parents=True)
    with pytest.raises(OSError):
        storage.download("x", tmp_path / "folder" / "f")
    assert files(tmp_path / "folder") == []


def test_processes_and_threads_have_their_own_clients(s3: Bucket):
    s3.put("here", b"content")
    storage = Storage(s3.uri)
    assert storage.size("here") == 7  # opens a connection that a fork would inherit
    pool = multiprocessing.get_context("fork").Pool(4)
    try:
        assert pool.map(storage.size, ["here"] * 40) == [7] * 40
    finally:  # kill: an inherited handler of SIGTERM may never run
        pool.close()
        pool.join()
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.uri == storage.uri and copy.size("here") == 7
    found: list[int | None] = []
    threads = [threading.Thread(target=lambda: found.append(storage.size("here"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 8
    error = failing(lambda: storage.download("no", Path("/nowhere-to-be-written")))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.cause, again.uri) == (str(error), error.cause, error.uri)


def test_operations_leave_no_threads(s3: Bucket, tmp_path: Path):
    before = threading.active_count()
    storage = Storage(s3.uri)
    with open(tmp_path / "big", "wb") as file:
        file.truncate(150_000_000)  # several parts
    storage.upload(tmp_path / "big", "big")
    storage.download("big", tmp_path / "back")
    assert (tmp_path / "back").stat().st_size == 150_000_000
    assert threading.active_count() == before


def test_uris():
    assert tuple(providers.SCHEMES) == units.SCHEMES
    assert is_remote("s3://a") and is_remote("gs://a/b") and not is_remote("/a") and not is_remote("a/b")
    assert Storage("s3://bucket/a/").object_uri("b/c") == "s3://bucket/a/b/c"
    assert Storage("s3://bucket").object_uri("c") == "s3://bucket/c"
    assert Storage("~/x").uri == str(Path.home() / "x")
    for wrong in ("http://a/b", "s3:///x", "hf://datasets/a"):
        with pytest.raises(ConfigError, match="s3://"):
            Storage(wrong)


def test_missing_folder(tmp_path: Path):
    storage = Storage(str(tmp_path / "no"))
    assert failing(storage.check_access).cause == "missing"
    assert failing(lambda: storage.download("x", tmp_path / "x")).cause == "missing"
    assert storage.list_sizes() == {} and storage.size("x") is None
    storage.check_access(write=True)
