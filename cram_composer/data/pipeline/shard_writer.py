"""One partition's rows of one split become MDS shards, which leave for object storage as they are finished."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.data.manifest import COLUMN, stored_file
from cram_composer.storage.client import Storage

_SHARD_BYTES = 32 << 20  # MDSWriter holds a shard in memory about three times
_UPLOADS = 4  # at a time


@dataclass
class Written:
    """What was written: blocks, rows, bytes of all shards as stored, and counts [vocab_size] of every id."""

    blocks: int
    rows: int
    bytes: int
    counts: NDArray


def write_shards(
    folder: Path, arrays: Iterator[NDArray], dtype: np.dtype, vocab_size: int, compression: str, uploads: Uploads | None
) -> Written:
    """Write each array as a record of an MDS split with xxh64 hashes, the index last, and hand shards to `uploads`."""
    from streaming import MDSWriter

    written = Written(0, 0, 0, np.zeros(vocab_size, np.int64))
    taken = 0
    with MDSWriter(
        out=str(folder),
        columns={COLUMN: f"ndarray:{dtype.name}"},
        hashes=["xxh64"],
        size_limit=_SHARD_BYTES,
        compression=None if compression == "none" else compression,
    ) as writer:
        for array in arrays:
            writer.write({COLUMN: array})
            written.blocks += 1
            written.rows += len(array)
            written.counts += np.bincount(array.ravel(), minlength=vocab_size)
            taken = _hand_over(folder, writer.shards, taken, uploads)
    _hand_over(folder, writer.shards, taken, uploads)
    written.bytes = sum(stored_file(shard)["bytes"] for shard in writer.shards)
    return written


def _hand_over(folder: Path, shards: list[dict[str, Any]], taken: int, uploads: Uploads | None) -> int:
    if uploads is not None:
        for shard in shards[taken:]:
            stored = stored_file(shard)
            uploads.add(folder / stored["basename"], stored["hashes"]["xxh64"])
    return len(shards)


class Uploads:
    """Files on their way to object storage, a few at a time; a context manager that waits for all of them.

    Each file is removed here when it is there. A log says which have arrived: what an interrupted build has uploaded
    is not uploaded again by the next. The first failure is raised by the next `add`, or at the end.
    """

    def __init__(self, storage: Storage, root: Path, log: Path) -> None:
        self._storage = storage
        self._root = root
        self._log = log
        self._arrived = dict(_entries(log))
        self._pool = ThreadPoolExecutor(_UPLOADS)
        self._pending: list[Future] = []

    def add(self, path: Path, digest: str) -> None:
        """Upload a file under its name relative to the root. Waits while as many as may are under way."""
        while len(self._pending) >= 2 * _UPLOADS:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(self._upload, path, digest))

    def _upload(self, path: Path, digest: str) -> None:
        name = path.relative_to(self._root).as_posix()
        if self._arrived.get(name) != digest:
            self._storage.upload(path, name)
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(json.dumps([name, digest]) + "\n")
        path.unlink()

    def __enter__(self) -> Uploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for future in self._pending:
                    future.result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def _entries(log: Path) -> Iterator[tuple[str, str]]:
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                name, digest = json.loads(line)
            except ValueError:
                continue  # the process was killed while it wrote this line: the file is uploaded again
            yield name, digest
