"""A global shuffle of rows on disk in bounded memory, and the MDS shards the shuffled rows end in.

Rows are dealt to random buckets that fit in memory; each bucket is then permuted as a whole. Every order of all rows
is equally likely, as in an in-memory shuffle (Rao 1961; Sanders 1998), for two sequential passes over the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COLUMN = "rows"
_FILL = 0.8  # of the memory bound, by the average bucket: sizes are random, and a bucket's permutation needs room too
_SHARD_BYTES = 32 << 20  # MDSWriter holds a shard in memory about three times


def shuffled(
    path: Path, rows: int, sequence_length: int, dtype: np.dtype, memory_bytes: int, seed: list[int]
) -> Iterator[NDArray]:
    """All rows of the file in random order, as arrays [n, sequence_length]; consumes the file.

    Holds about `memory_bytes` of rows. Determined by the rows, `memory_bytes` and `seed`.
    """
    random = np.random.default_rng(seed)
    row_bytes = sequence_length * dtype.itemsize
    buckets = -(-rows * row_bytes // max(int(memory_bytes * _FILL), row_bytes))
    paths = [path]
    if buckets > 1:
        paths = [path.with_name(f"{path.name}.{i}") for i in range(buckets)]
        _deal(path, rows, row_bytes, paths, max(memory_bytes // (4 * row_bytes), 1), random)
        path.unlink()
    for bucket in paths:
        # An empty bucket has no file.
        held = np.fromfile(bucket, dtype).reshape(-1, sequence_length) if bucket.exists() else None
        bucket.unlink(missing_ok=True)
        if held is not None:
            order = random.permutation(len(held))
            for start in range(0, len(order), 4096):
                yield held[order[start : start + 4096]]


def _deal(
    path: Path, rows: int, row_bytes: int, buckets: list[Path], chunk_rows: int, random: np.random.Generator
) -> None:
    with open(path, "rb") as file:
        for start in range(0, rows, chunk_rows):
            count = min(chunk_rows, rows - start)
            chunk = np.fromfile(file, np.uint8, count * row_bytes).reshape(count, row_bytes)
            bucket_of = random.integers(len(buckets), size=count)
            order = np.argsort(bucket_of, kind="stable")
            ends = np.cumsum(np.bincount(bucket_of, minlength=len(buckets)))
            for bucket, mine in zip(buckets, np.split(order, ends[:-1]), strict=True):
                if len(mine):
                    # Opened anew every time: there may be more buckets than files that a process may hold open.
                    with open(bucket, "ab") as out:
                        chunk[mine].tofile(out)


def blocks(arrays: Iterator[NDArray], block_rows: int) -> Iterator[NDArray]:
    """The same rows, [block_rows, sequence_length] at a time; the last block may be shorter."""
    rest: NDArray | None = None
    for array in arrays:
        rest = array if rest is None else np.concatenate([rest, array])
        full = len(rest) // block_rows * block_rows
        for start in range(0, full, block_rows):
            yield rest[start : start + block_rows]
        rest = rest[full:]
    if rest is not None and len(rest):
        yield rest


def write_shards(folder: Path, arrays: Iterator[NDArray], dtype: np.dtype) -> tuple[int, int]:
    """Write each array as a record of an MDS split with xxh64 hashes; returns (records, bytes of all shards)."""
    from streaming import MDSWriter

    encoding = f"ndarray:{dtype.name}"
    count = 0
    with MDSWriter(out=str(folder), columns={COLUMN: encoding}, hashes=["xxh64"], size_limit=_SHARD_BYTES) as writer:
        for array in arrays:
            writer.write({COLUMN: array})
            count += 1
    return count, sum(shard.stat().st_size for shard in folder.glob("*.mds"))
