"""The shards of one split: fetched from object storage or a mirror, validated, unpacked.

Bytes are validated before they get the name under which they are read, so that a shard is whole or not there.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash
from streaming import Stream
from streaming.base.compression import decompress
from streaming.base.format import FileInfo, Reader

from cram_composer.data.manifest import file_xxh64
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, StorageError

TEMPORARY = ".fetching-"  # how the name of a file begins that is not whole yet
LAST_TRY_SECONDS = 10.0  # what a fetch gets at least, also where waiting for others took all the time there was
_DAMAGED = "the data set is damaged, copy or build it again"
_NO_ROOM = "free some space, or set data.cache_limit"


class ShardError(CramError):
    """A shard that cannot be had or read. One line: which, why, and what was tried."""


class _Corrupt(Exception):
    """What was fetched is not what was built."""


class ShardStream(Stream):
    """A split whose shards come from `remote`, else from `mirror`; without a remote, from the folder `local` alone.

    `deadline` is in seconds, for each of the two; `weight` is Streaming's proportion, repeat or choose.
    """

    def __init__(
        self, local: str, split: str, *, remote: str | None, mirror: str | None, deadline: float, **weight: Any
    ) -> None:
        # Streaming's own downloader is not used, so it is not told of the remote yet: it knows fewer kinds.
        super().__init__(local=local, split=split, keep_zip=False, **weight)
        self.remote = remote
        # Where there is nothing to get it from again, the compressed form stays.
        self.safe_keep_zip = remote is None
        self._sources = [uri for uri in (remote, mirror) if uri is not None]
        self._deadline = deadline
        self._storages = threading.local()  # which keeps connections

    @property
    def patience(self) -> float:
        """Seconds after which a shard is given up, whoever is fetching it."""
        return self._deadline * max(1, len(self._sources))

    def prepare_shard(self, shard: Reader, patience: float | None = None) -> int:
        """Get a shard and unpack it. Returns the bytes added to the disk. Raises ShardError."""
        raw, zipped = shard.file_pairs[0]
        target = self._path(raw.basename)
        try:
            if target.is_file():
                return 0
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._sources:
                self._fetch(shard, target, self.patience if patience is None else patience)
            elif zipped is None:
                raise ShardError(f"{target}: is not there any more; {_DAMAGED}")
            else:
                self._unpack_in_place(shard, target)
        except OSError as error:
            hint = _NO_ROOM if error.errno == errno.ENOSPC else "choose another folder with data.local"
            raise ShardError(f"{target}: cannot be written ({error.strerror or error}); {hint}") from None
        return raw.bytes

    def _fetch(self, shard: Reader, target: Path, patience: float) -> None:
        problems: dict[str, int] = {}
        ends = time.monotonic() + patience
        for i, uri in enumerate(list(self._sources)):
            # Whoever has no answer leaves a share of the time for those after it.
            share = max(LAST_TRY_SECONDS, (ends - time.monotonic()) / (len(self._sources) - i))
            storage = self._storage(uri, share)
            for _ in range(2):  # a copy that was damaged on the way is had again
                try:
                    self._fetch_from(storage, shard, target)
                except _Corrupt as error:
                    problem = f"{storage.object_uri(self._name(shard))}: {error}"
                    problems[problem] = problems.get(problem, 0) + 1
                except StorageError as error:
                    if error.cause == "disk-full":
                        raise ShardError(f"{target}: the disk is full; {_NO_ROOM}") from None
                    problems[str(error)] = 1
                    if error.cause != "missing" and i + 1 < len(self._sources):
                        # The next shard would have to wait for it as long as this one.
                        self._sources = [*self._sources[1:], uri]
                    break
                else:
                    return
        raise ShardError("; ".join(f"{text} (fetched twice)" if n > 1 else text for text, n in problems.items()))

    def _fetch_from(self, storage: Storage, shard: Reader, target: Path) -> None:
        raw, zipped = shard.file_pairs[0]
        temporary = _temporary(target)
        try:
            storage.download(self._name(shard), temporary)
            _validate(zipped or raw, temporary.stat().st_size, file_xxh64(temporary))
            if zipped is None:
                os.replace(temporary, target)
            else:
                _unpack(temporary, shard, target)
        finally:
            _remove(temporary)

    def _unpack_in_place(self, shard: Reader, target: Path) -> None:
        _, zipped = shard.file_pairs[0]
        path = self._path(zipped.basename)
        try:
            _validate(zipped, path.stat().st_size, file_xxh64(path))
            _unpack(path, shard, target)
        except FileNotFoundError:
            raise ShardError(f"{path}: is not there any more; {_DAMAGED}") from None
        except _Corrupt as error:
            raise ShardError(f"{path}: {error}; {_DAMAGED}") from None

    def _download_file(self, from_basename: str, to_basename: str | None = None) -> str:
        """Get a file that has no hash: the index, where the pre-flight has not done so."""
        target = self._path(to_basename or from_basename)
        if self.remote is None:
            raise ShardError(f"{target}: missing; {_DAMAGED}")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._storage(self.remote, self._deadline).download(f"{self.split}/{from_basename}", target)
        return str(target)

    def _storage(self, uri: str, seconds: float) -> Storage:
        storage: Storage = self._storages.__dict__.setdefault(uri, Storage(uri))
        storage.deadline = seconds
        return storage

    def _path(self, basename: str) -> Path:
        return Path(self.local, self.split, basename)

    def _name(self, shard: Reader) -> str:
        raw, zipped = shard.file_pairs[0]
        return f"{self.split}/{(zipped or raw).basename}"


def _validate(expected: FileInfo, size: int, digest: str) -> None:
    if size != expected.bytes:
        raise _Corrupt(f"{size} bytes instead of {expected.bytes}")
    if digest != expected.hashes["xxh64"]:
        raise _Corrupt("its xxh64 hash differs from the one in index.json")


def _unpack(path: Path, shard: Reader, target: Path) -> None:
    try:
        data = decompress(shard.compression, path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # the library has exceptions of its own
        raise _Corrupt(f"cannot be unpacked ({error})") from None
    _validate(shard.file_pairs[0][0], len(data), xxhash.xxh64(data).hexdigest())
    temporary = _temporary(target)
    try:
        temporary.write_bytes(data)
        os.replace(temporary, target)
    finally:
        _remove(temporary)


def _temporary(target: Path) -> Path:
    return target.with_name(temporary_name())


def temporary_name() -> str:
    """A name that no other process uses, and that tells whose it is."""
    return f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}"


def is_left_over(path: Path) -> bool:
    """Whether the process that was writing a file of such a name is gone from this machine."""
    match = re.search(rf"{re.escape(TEMPORARY + socket.gethostname())}-(\d+)-", path.name)
    return match is not None and not Path(f"/proc/{match[1]}").exists()


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()
