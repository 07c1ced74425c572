"""The shards of one split: fetched from object storage or a mirror, validated, unpacked.

Bytes are validated before they get their final name, so that a shard is either complete or absent.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from streaming import Stream
from streaming.base.format import FileInfo, Reader

from cram_composer.data.manifest import file_xxh64
from cram_composer.data.unpack import UnpackError, unpack_zstd
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, StorageError
from cram_composer.storage.paths import resolve_inside

TEMPORARY = ".fetching-"  # prefix of temporary file names
MIN_FETCH_SECONDS = 10.0  # minimum time for a fetch, even after a long wait for other processes
_DAMAGED = "the data set is damaged, copy or build it again"
_NO_ROOM = "free some space, or set data.cache_limit"


class ShardError(CramError):
    """A shard that cannot be fetched or read; one line with its name, the cause and what was tried."""


class _CorruptDataError(Exception):
    """Fetched data that differ from the built data."""


class ShardStream(Stream):
    """A split whose shards come from `remote`, then from `mirror`; without a remote, from the folder `local` alone.

    `deadline` is in seconds, for each of the two; `weight` is Streaming's proportion, repeat or choose.
    """

    def __init__(
        self, local: str, split: str, *, remote: str | None, mirror: str | None, deadline: float, **weight: Any
    ) -> None:
        # Hides the remote from Streaming's own downloader, which supports fewer providers.
        super().__init__(local=local, split=split, keep_zip=False, **weight)
        self.remote = remote
        # Without a remote to fetch it from again, the compressed form is kept.
        self.safe_keep_zip = remote is None
        self._sources = [uri for uri in (remote, mirror) if uri is not None]
        self._deadline = deadline
        self._storages = threading.local()  # keeps connections

    @property
    def fetch_timeout(self) -> float:
        """Seconds until fetching a shard fails, whichever process fetches it."""
        return self._deadline * max(1, len(self._sources))

    def prepare_shard(self, shard: Reader, fetch_timeout: float | None = None) -> int:
        """Fetch and unpack a shard; return the bytes added to the disk. Raises ShardError."""
        raw, zipped = shard.file_pairs[0]
        target = self._local_path(raw.basename)
        try:
            if target.is_file():
                return 0
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._sources:
                self._fetch_shard(shard, target, self.fetch_timeout if fetch_timeout is None else fetch_timeout)
            elif zipped is None:
                raise ShardError(f"{target}: no longer exists; {_DAMAGED}")
            else:
                self._unpack_in_place(shard, target)
        except OSError as error:
            hint = _NO_ROOM if error.errno == errno.ENOSPC else "choose another folder with data.local"
            raise ShardError(f"{target}: cannot be written ({error.strerror or error}); {hint}") from None
        return raw.bytes

    def _fetch_shard(self, shard: Reader, target: Path, fetch_timeout: float) -> None:
        problems: dict[str, int] = {}
        ends = time.monotonic() + fetch_timeout
        for i, uri in enumerate(list(self._sources)):
            # Leaves a share of the time for the next copy if this one is unresponsive.
            share = max(MIN_FETCH_SECONDS, (ends - time.monotonic()) / (len(self._sources) - i))
            storage = self._open_storage(uri, share)
            for _ in range(2):  # fetch a damaged copy once more
                try:
                    self._download_and_unpack(storage, shard, target)
                except _CorruptDataError as error:
                    problem = f"{storage.object_uri(self._remote_name(shard))}: {error}"
                    problems[problem] = problems.get(problem, 0) + 1
                except StorageError as error:
                    if error.cause == "disk-full":
                        raise ShardError(f"{target}: the disk is full; {_NO_ROOM}") from None
                    problems[str(error)] = 1
                    if error.cause != "missing" and i + 1 < len(self._sources):
                        # Avoids waiting for this copy again for the next shard.
                        self._sources = [*self._sources[1:], uri]
                    break
                else:
                    return
        raise ShardError("; ".join(f"{text} (fetched twice)" if n > 1 else text for text, n in problems.items()))

    def _download_and_unpack(self, storage: Storage, shard: Reader, target: Path) -> None:
        raw, zipped = shard.file_pairs[0]
        temporary = _temporary_path(target)
        try:
            storage.download(self._remote_name(shard), temporary, limit=(zipped or raw).bytes)
            _validate(zipped or raw, temporary.stat().st_size, file_xxh64(temporary))
            if zipped is None:
                os.replace(temporary, target)
            else:
                _unpack(temporary, shard, target)
        finally:
            temporary.unlink(missing_ok=True)

    def _unpack_in_place(self, shard: Reader, target: Path) -> None:
        _, zipped = shard.file_pairs[0]
        path = self._local_path(zipped.basename)
        try:
            _validate(zipped, path.stat().st_size, file_xxh64(path))
            _unpack(path, shard, target)
        except FileNotFoundError:
            raise ShardError(f"{path}: no longer exists; {_DAMAGED}") from None
        except _CorruptDataError as error:
            raise ShardError(f"{path}: {error}; {_DAMAGED}") from None

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Download a file without a hash: the index, if the pre-flight check has not done so."""
        target = self._local_path(to_basename or from_basename)
        if self.remote is None:
            raise ShardError(f"{target}: missing; {_DAMAGED}")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._open_storage(self.remote, self._deadline).download(f"{self.split}/{from_basename}", target)
        return str(target)

    def _open_storage(self, uri: str, seconds: float) -> Storage:
        storage: Storage = self._storages.__dict__.setdefault(uri, Storage(uri))
        storage.deadline = seconds
        return storage

    def _local_path(self, basename: str) -> Path:
        return resolve_inside(Path(self.local), f"{self.split}/{basename}", f"{self.local}/{self.split}/index.json")

    def _remote_name(self, shard: Reader) -> str:
        raw, zipped = shard.file_pairs[0]
        return f"{self.split}/{(zipped or raw).basename}"


def _validate(expected: FileInfo, size: int, digest: str) -> None:
    if size != expected.bytes:
        raise _CorruptDataError(f"{size} bytes instead of {expected.bytes}")
    if digest != expected.hashes["xxh64"]:
        raise _CorruptDataError("its xxh64 hash differs from the one in index.json")


def _unpack(path: Path, shard: Reader, target: Path) -> None:
    raw = shard.file_pairs[0][0]
    temporary = _temporary_path(target)
    try:
        digest = unpack_zstd(path, temporary, raw.bytes)
        _validate(raw, raw.bytes, digest)
        os.replace(temporary, target)
    except UnpackError as error:
        raise _CorruptDataError(f"cannot be unpacked ({error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _temporary_path(target: Path) -> Path:
    return target.with_name(temporary_name())


def temporary_name() -> str:
    """Return a name that no other process uses and that identifies its process."""
    return f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def is_orphaned(path: Path) -> bool:
    """Return True if the process that was writing this temporary file on this machine is gone."""
    match = re.search(rf"{re.escape(TEMPORARY + socket.gethostname())}-(\d+)-", path.name)
    return match is not None and not Path(f"/proc/{match[1]}").exists()
