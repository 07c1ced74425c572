"""Shuffle or sort rows in bounded memory, over many processes.

Rows are distributed to buckets that fit in memory, and each bucket is then permuted or sorted as a whole. With random
buckets, every order of all rows is equally likely, as in an in-memory shuffle (Rao 1961; Sanders 1998); with buckets of
key ranges, the rows end up sorted. Both take two sequential passes over the data and run in many processes: each
distributes its own rows to all buckets and then processes some of the buckets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FILL_FRACTION = 0.8  # of the memory bound, by the average bucket: sizes are random, and a permutation needs memory too
_MAX_SAMPLED_KEYS = 65536  # keys of a partition that determine the ranges of buckets
_CHUNK_TOKENS = 1 << 20

KeyFunction = Callable[[NDArray], NDArray]


def buckets_needed(rows: int, row_bytes: int, memory_bytes: int, partitions: int) -> int:
    """Return the number of buckets per partition so that one bucket fits in `memory_bytes`."""
    return max(-(-rows * row_bytes // (partitions * max(int(memory_bytes * _FILL_FRACTION), row_bytes))), 1)


@dataclass(frozen=True)
class RowFile:
    """A file of rows [rows, sequence_length], read in chunks."""

    path: Path
    sequence_length: int
    dtype: np.dtype

    def chunks(self) -> Iterator[NDArray]:
        """Yield the rows in order, [n, sequence_length], about a million tokens at a time."""
        count = max(_CHUNK_TOKENS // self.sequence_length, 1) * self.sequence_length
        with open(self.path, "rb") as file:
            while len(rows := np.fromfile(file, self.dtype, count)):
                yield rows.reshape(-1, self.sequence_length)


def with_keys(file: RowFile, keys: KeyFunction, random: np.random.Generator) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield chunks of rows with pairs float64 [n, 2] of their key and a random number, which breaks ties."""
    for rows in file.chunks():
        yield rows, np.stack([keys(rows), random.random(len(rows))], axis=1)


def sample_keys(file: RowFile, keys: KeyFunction, seed: list[int]) -> NDArray:
    """Sample key pairs [<=65536, 2] evenly from the file, as `distribute_by_key` with this seed computes them."""
    kept: list[NDArray] = []
    total = file.path.stat().st_size // (file.sequence_length * file.dtype.itemsize)
    step = max(total // _MAX_SAMPLED_KEYS, 1)
    start = 0
    for _, pairs in with_keys(file, keys, np.random.default_rng(seed)):
        kept.append(pairs[-start % step :: step])
        start += len(pairs)
    return np.concatenate(kept) if kept else np.zeros((0, 2))


def range_limits(samples: NDArray, buckets: int) -> NDArray:
    """Return key pairs [buckets - 1, 2] that divide the sampled keys into ranges of about equal count."""
    ordered = samples[np.lexsort((samples[:, 1], samples[:, 0]))]
    at = np.arange(1, buckets) * len(ordered) // buckets
    return ordered[at] if len(ordered) else np.zeros((buckets - 1, 2))


def distribute_at_random(file: RowFile, folder: Path, name: str, buckets: int, seed: list[int]) -> None:
    """Append each row to one of FOLDER/BUCKET.NAME, chosen at random."""
    random = np.random.default_rng(seed)
    for rows in file.chunks():
        _append_to_buckets(rows, random.integers(buckets, size=len(rows)), folder, name, buckets)


def distribute_by_key(
    file: RowFile, keys: KeyFunction, limits: NDArray, folder: Path, name: str, seed: list[int]
) -> None:
    """Append each row to the bucket of its key range, and the key pairs to FOLDER/BUCKET.NAME.keys."""
    for rows, pairs in with_keys(file, keys, np.random.default_rng(seed)):
        bucket_of = _find_buckets(limits, pairs)
        _append_to_buckets(rows, bucket_of, folder, name, len(limits) + 1)
        _append_to_buckets(pairs, bucket_of, folder, f"{name}.keys", len(limits) + 1)


def _find_buckets(limits: NDArray, pairs: NDArray) -> NDArray:
    """Return for each pair the number of sorted limits [n, 2] that are <= it, in lexicographic order."""
    everything = np.concatenate([limits, pairs])
    # Limits precede equal pairs, because the sort is stable.
    order = np.lexsort((everything[:, 1], everything[:, 0]))
    is_limit = order < len(limits)
    found = np.empty(len(everything), np.int64)
    found[order] = np.cumsum(is_limit)
    return found[len(limits) :]


def _append_to_buckets(rows: NDArray, bucket_of: NDArray, folder: Path, name: str, buckets: int) -> None:
    order = np.argsort(bucket_of, kind="stable")
    ends = np.cumsum(np.bincount(bucket_of, minlength=buckets))
    for bucket, mine in enumerate(np.split(order, ends[:-1])):
        if len(mine):
            # Reopened every time: there may be more buckets than file descriptors.
            with open(folder / f"{bucket:06d}.{name}", "ab") as out:
                rows[mine].tofile(out)


def read_buckets(
    folder: Path, names: list[str], buckets: range, sequence_length: int, dtype: np.dtype, seed: list[int]
) -> Iterator[NDArray]:
    """Yield the rows [n, sequence_length] of buckets in random order or, if there are keys, sorted.

    `names` are the suffixes the rows were distributed under. The files are kept.
    """
    random = np.random.default_rng(seed)
    for bucket in buckets:
        paths = [path for name in names if (path := folder / f"{bucket:06d}.{name}").exists()]
        if not paths:
            continue
        held = _read_files(paths, dtype).reshape(-1, sequence_length)
        key_paths = [path.with_name(f"{path.name}.keys") for path in paths]
        if key_paths[0].exists():
            pairs = _read_files(key_paths, np.dtype(np.float64)).reshape(-1, 2)
            order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        else:
            order = random.permutation(len(held))
        for start in range(0, len(order), 4096):
            yield held[order[start : start + 4096]]


def _read_files(paths: list[Path], dtype: np.dtype) -> NDArray:
    # Into one array: concatenating would take twice the memory.
    sizes = [path.stat().st_size for path in paths]
    held = np.empty(sum(sizes) // dtype.itemsize, dtype)
    room = held.view(np.uint8).data
    for path, size in zip(paths, sizes, strict=True):
        with open(path, "rb") as file:
            file.readinto(room[:size])
        room = room[size:]
    return held


def group_into_blocks(arrays: Iterator[NDArray], block_rows: int) -> Iterator[NDArray]:
    """Regroup rows into blocks [block_rows, sequence_length]; the last may be shorter."""
    rest: NDArray | None = None
    for array in arrays:
        rest = array if rest is None else np.concatenate([rest, array])
        full = len(rest) // block_rows * block_rows
        for start in range(0, full, block_rows):
            yield rest[start : start + block_rows]
        rest = rest[full:]
    if rest is not None and len(rest):
        yield rest
