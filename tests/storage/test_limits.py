"""Downloads end in time and within their size, whatever the server sends; locks belong to their user."""

from __future__ import annotations

import http.server
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cram_composer.data.unpack import UnpackError, unpack_zstd
from cram_composer.errors import CramError
from cram_composer.storage import files
from cram_composer.storage.client import Storage, StorageError
from cram_composer.storage.files import lock_folder
from cram_composer.storage.providers import load_clients


def _point_to(server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**values, "S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}.items():
        monkeypatch.setenv(name, value)


@contextmanager
def _server(monkeypatch: pytest.MonkeyPatch, size: int, sent: int, seconds_per_byte: float) -> Iterator[Storage]:
    """Start a server that announces `size` bytes for any object and sends `sent`, a byte at a time if slow."""
    stop = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(size))
            self.end_headers()
            try:
                if not seconds_per_byte:
                    self.wfile.write(bytes(sent))
                for _ in range(sent if seconds_per_byte else 0):
                    self.wfile.write(b"x")
                    if stop.wait(seconds_per_byte):
                        return
            except OSError:  # the client has had enough
                return

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _point_to(server, monkeypatch)
    try:
        yield Storage("s3://bucket/data", deadline=2.0)
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def test_server_that_trickles_cannot_outlast_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _server(monkeypatch, size=10_000, sent=10_000, seconds_per_byte=0.1) as storage:
        load_clients("s3")
        started = time.monotonic()
        with pytest.raises(StorageError, match="bytes arrived before the deadline") as error:
            storage.download("x", tmp_path / "x")
    assert 2.0 <= time.monotonic() - started < 6.0 and error.value.cause == "unreachable"
    assert list(tmp_path.iterdir()) == []


def test_larger_object_than_expected_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _server(monkeypatch, size=50 << 20, sent=50 << 20, seconds_per_byte=0) as storage:
        storage.deadline = 60.0  # for a busy machine
        with pytest.raises(StorageError, match=r"s3://bucket/data/x: sends more than 1000 bytes") as error:
            storage.download("x", tmp_path / "x", limit=1000)
        assert error.value.cause == "too-large" and list(tmp_path.iterdir()) == []
        storage.download("x", tmp_path / "x", limit=50 << 20)
    assert (tmp_path / "x").stat().st_size == 50 << 20


def test_shorter_body_than_announced_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        _server(monkeypatch, size=5000, sent=4000, seconds_per_byte=0) as storage,
        pytest.raises(StorageError) as error,
    ):
        storage.download("x", tmp_path / "x")
    assert error.value.cause == "unreachable" and list(tmp_path.iterdir()) == []


class _BadStore(http.server.BaseHTTPRequestHandler):
    """Answers every request in a way that no object store does, by the kind of the class."""

    kind = ""

    def do_GET(self) -> None:
        if self.kind == "silent":
            time.sleep(30.0)
        elif self.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            body = {"html": b"<html>a proxy</html>", "cut": b"<?xml version='1.0'?><ListBucketResult><Cont"}[self.kind]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("kind", ["silent", "reset", "html", "cut"])
def test_a_bad_listing_is_one_line_in_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Bad", (_BadStore,), {"kind": kind}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of connections that it has reset
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _point_to(server, monkeypatch)
    started = time.monotonic()
    try:
        with pytest.raises(StorageError) as caught:
            Storage("s3://bucket/data", deadline=2.0).list_sizes()
    finally:
        server.shutdown()
        server.server_close()
    assert time.monotonic() - started < 26.0, "the deadline and one read timeout"
    assert "\n" not in str(caught.value) and "s3://bucket/data" in str(caught.value)


def test_folder_is_bounded_too(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(5000))
    with pytest.raises(StorageError, match="sends more than 4999 bytes"):
        Storage(str(tmp_path)).download("x", tmp_path / "copy", limit=4999)
    assert not (tmp_path / "copy").exists()


def test_unpacking_stops_at_the_size_of_the_index(tmp_path: Path) -> None:
    import zstd

    bomb, target = tmp_path / "bomb.zstd", tmp_path / "target"
    bomb.write_bytes(zstd.compress(bytes(256 << 20)))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UnpackError, match="more than 1000000 bytes"):
        unpack_zstd(bomb, target, 1_000_000)
    assert target.stat().st_size <= 1_000_000
    with pytest.raises(UnpackError, match=f"{256 << 20} bytes instead of {257 << 20}"):
        unpack_zstd(bomb, target, 257 << 20)
    bomb.write_bytes(b"not zstd at all")
    with pytest.raises(UnpackError):
        unpack_zstd(bomb, target, 1_000_000)
    content = os.urandom(9 << 20)
    bomb.write_bytes(zstd.compress(content))
    unpack_zstd(bomb, target, len(content))
    assert target.read_bytes() == content


def test_locks_are_in_a_folder_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = lock_folder()
    assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
    assert lock_folder() == folder
    folder.chmod(0o777)
    with pytest.raises(CramError, match="must be a folder that only you can use; remove it, or set TMPDIR"):
        lock_folder()
    folder.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CramError, match="must be a folder that only you can use"):
        lock_folder()
    folder.unlink()
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(files.os, "getuid", lambda: int(folder.name.rpartition("-")[2]) + 1)
    (tmp_path / f"cram-composer-{files.os.getuid()}").mkdir(mode=0o700)
    with pytest.raises(CramError, match="must be a folder that only you can use"):
        lock_folder()
