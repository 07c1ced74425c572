"""Rows in random order, or in the order of keys, in bounded memory and over many processes.

Rows are dealt to buckets that fit in memory, and each bucket is then permuted or sorted as a whole. Dealt at random,
every order of all rows is equally likely, as in an in-memory shuffle (Rao 1961; Sanders 1998); dealt by ranges of their
keys, they end up sorted. Either takes two sequential passes over the data, and either can be done by many processes:
each deals its own rows to everybody's buckets, and then takes some of the buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FILL = 0.8  # of the memory bound, by the average bucket: sizes are random, and a bucket's permutation needs room too
_SAMPLE = 65536  # keys of a partition that the ranges of buckets are chosen by
_CHUNK_TOKENS = 1 << 20

Keys = Callable[[NDArray], NDArray]


def buckets_needed(rows: int, row_bytes: int, memory_bytes: int, partitions: int) -> int:
    """Buckets for each of the partitions, so that one of them fits in `memory_bytes`."""
    return max(-(-rows * row_bytes // (partitions * max(int(memory_bytes * _FILL), row_bytes))), 1)


@dataclass(frozen=True)
class RowFile:
    """A file of rows [rows, sequence_length], read some at a time."""

    path: Path
    sequence_length: int
    dtype: np.dtype

    def chunks(self) -> Iterator[NDArray]:
        """The rows in order, [n, sequence_length]; no more are in memory than about a million tokens."""
        count = max(_CHUNK_TOKENS // self.sequence_length, 1) * self.sequence_length
        with open(self.path, "rb") as file:
            while len(rows := np.fromfile(file, self.dtype, count)):
                yield rows.reshape(-1, self.sequence_length)


def keyed(file: RowFile, keys: Keys, random: np.random.Generator) -> Iterator[tuple[NDArray, NDArray]]:
    """Chunks of rows with their keys and, for rows of equal keys, random numbers: float64 [n, 2]."""
    for rows in file.chunks():
        yield rows, np.stack([keys(rows), random.random(len(rows))], axis=1)


def sample_keys(file: RowFile, keys: Keys, seed: list[int]) -> NDArray:
    """Keys [<=65536, 2] of rows from all over the file, as `deal_by_key` with this seed will see them."""
    kept: list[NDArray] = []
    total = file.path.stat().st_size // (file.sequence_length * file.dtype.itemsize)
    step = max(total // _SAMPLE, 1)
    start = 0
    for _, pairs in keyed(file, keys, np.random.default_rng(seed)):
        kept.append(pairs[-start % step :: step])
        start += len(pairs)
    return np.concatenate(kept) if kept else np.zeros((0, 2))


def borders(samples: NDArray, buckets: int) -> NDArray:
    """Keys [buckets - 1, 2] between which about as many of the sampled keys lie."""
    ordered = samples[np.lexsort((samples[:, 1], samples[:, 0]))]
    at = np.arange(1, buckets) * len(ordered) // buckets
    return ordered[at] if len(ordered) else np.zeros((buckets - 1, 2))


def deal_at_random(file: RowFile, folder: Path, name: str, buckets: int, seed: list[int]) -> None:
    """Append each row to one of FOLDER/BUCKET.NAME, chosen at random."""
    random = np.random.default_rng(seed)
    for rows in file.chunks():
        _append(rows, random.integers(buckets, size=len(rows)), folder, name, buckets)


def deal_by_key(file: RowFile, keys: Keys, limits: NDArray, folder: Path, name: str, seed: list[int]) -> None:
    """Append each row to the bucket that its key falls in, and the keys to FOLDER/BUCKET.NAME.keys."""
    for rows, pairs in keyed(file, keys, np.random.default_rng(seed)):
        bucket_of = _find(limits, pairs)
        _append(rows, bucket_of, folder, name, len(limits) + 1)
        _append(pairs, bucket_of, folder, f"{name}.keys", len(limits) + 1)


def _find(limits: NDArray, pairs: NDArray) -> NDArray:
    """For each pair, how many of the sorted limits [n, 2] are at or below it, in lexicographic order."""
    everything = np.concatenate([limits, pairs])
    # Limits come first among equals, because the sort is stable.
    order = np.lexsort((everything[:, 1], everything[:, 0]))
    is_limit = order < len(limits)
    found = np.empty(len(everything), np.int64)
    found[order] = np.cumsum(is_limit)
    return found[len(limits) :]


def _append(rows: NDArray, bucket_of: NDArray, folder: Path, name: str, buckets: int) -> None:
    order = np.argsort(bucket_of, kind="stable")
    ends = np.cumsum(np.bincount(bucket_of, minlength=buckets))
    for bucket, mine in enumerate(np.split(order, ends[:-1])):
        if len(mine):
            # Opened anew every time: there may be more buckets than files that a process may hold open.
            with open(folder / f"{bucket:06d}.{name}", "ab") as out:
                rows[mine].tofile(out)


def gather(
    folder: Path, names: list[str], buckets: range, sequence_length: int, dtype: np.dtype, seed: list[int]
) -> Iterator[NDArray]:
    """The rows of some buckets, bucket by bucket, in random order or, if keys were dealt, sorted: [n, sequence_length].

    `names` are those that the rows were dealt under. The files stay.
    """
    random = np.random.default_rng(seed)
    for bucket in buckets:
        paths = [path for name in names if (path := folder / f"{bucket:06d}.{name}").exists()]
        if not paths:
            continue
        held = _read(paths, dtype).reshape(-1, sequence_length)
        key_paths = [path.with_name(f"{path.name}.keys") for path in paths]
        if key_paths[0].exists():
            pairs = _read(key_paths, np.dtype(np.float64)).reshape(-1, 2)
            order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        else:
            order = random.permutation(len(held))
        for start in range(0, len(order), 4096):
            yield held[order[start : start + 4096]]


def _read(paths: list[Path], dtype: np.dtype) -> NDArray:
    # Into one array at once: concatenating would hold everything twice.
    sizes = [path.stat().st_size for path in paths]
    held = np.empty(sum(sizes) // dtype.itemsize, dtype)
    room = held.view(np.uint8).data
    for path, size in zip(paths, sizes, strict=True):
        with open(path, "rb") as file:
            file.readinto(room[:size])
        room = room[size:]
    return held


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
