"""Write one partition's rows of one split as MDS shards, and upload each finished shard in the background."""

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

from cram_composer.data.manifest import COLUMN, stored_entry
from cram_composer.storage.client import Storage

_SHARD_BYTES = 32 << 20  # MDSWriter uses about three times this much memory
_CONCURRENT_UPLOADS = 4


@dataclass
class ShardStatistics:
    """Blocks, rows, stored bytes of all shards, and counts [vocab_size] of token ids."""

    blocks: int
    rows: int
    bytes: int
    counts: NDArray


def write_shards(
    folder: Path,
    arrays: Iterator[NDArray],
    dtype: np.dtype,
    vocab_size: int,
    compression: str,
    uploads: UploadQueue | None,
) -> ShardStatistics:
    """Write each array as a record of an MDS split with xxh64 hashes, and queue finished shards for upload."""
    from streaming import MDSWriter

    written = ShardStatistics(0, 0, 0, np.zeros(vocab_size, np.int64))
    queued = 0
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
            queued = _queue_uploads(folder, writer.shards, queued, uploads)
    _queue_uploads(folder, writer.shards, queued, uploads)
    written.bytes = sum(stored_entry(shard)["bytes"] for shard in writer.shards)
    return written


def _queue_uploads(folder: Path, shards: list[dict[str, Any]], queued: int, uploads: UploadQueue | None) -> int:
    if uploads is not None:
        for shard in shards[queued:]:
            stored = stored_entry(shard)
            uploads.add(folder / stored["basename"], stored["hashes"]["xxh64"])
    return len(shards)


class UploadQueue:
    """Uploads files to object storage, a few at a time; a context manager that waits for all of them.

    Uploaded files are deleted locally. A log lists them, so that a restarted build does not upload them again. The
    first failure is raised by the next `add`, or at the end.
    """

    def __init__(self, storage: Storage, root: Path, log: Path) -> None:
        self._storage = storage
        self._root = root
        self._log = log
        self._uploaded = dict(_read_log(log))
        self._pool = ThreadPoolExecutor(_CONCURRENT_UPLOADS)
        self._pending: list[Future] = []

    def add(self, path: Path, digest: str) -> None:
        """Upload a file under its name relative to the root; wait if the queue is full."""
        while len(self._pending) >= 2 * _CONCURRENT_UPLOADS:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(self._upload, path, digest))

    def _upload(self, path: Path, digest: str) -> None:
        name = path.relative_to(self._root).as_posix()
        if self._uploaded.get(name) != digest:
            self._storage.upload(path, name)
            with open(self._log, "a", encoding="utf-8") as file:
                file.write(json.dumps([name, digest]) + "\n")
        path.unlink()

    def __enter__(self) -> UploadQueue:
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


def _read_log(log: Path) -> Iterator[tuple[str, str]]:
    if log.exists():
        for line in log.read_text(encoding="utf-8").splitlines():
            try:
                name, digest = json.loads(line)
            except ValueError:
                continue  # the process was killed while writing this line; upload the file again
            yield name, digest
