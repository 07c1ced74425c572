"""Find records with equal keys in bounded memory: distribute records to files by key, then process file by file.

A record is a key and an owner, both 64-bit; an owner is `partition << 40 | index`, so owners sort in build order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cram_composer.errors import CramError

PARTITION_SHIFT = 40
_RECORD_BYTES = 16
# A flush needs memory for the records, their sorted copy, bucket numbers and the order.
_BYTES_PER_BUFFERED = _RECORD_BYTES + _RECORD_BYTES + 8 + 8


_RECORDS_PER_READ = 1 << 18


class BucketWriter:
    """Appends records to `folder/NAME.BUCKET`, where BUCKET is the key modulo `count`, in `memory_bytes` of memory.

    Removes files that an earlier attempt left. `close` creates an empty file for each empty bucket, so that a missing
    file indicates a lost bucket.
    """

    def __init__(self, folder: Path, name: str, count: int, memory_bytes: int) -> None:
        self.paths = [folder / f"{name}.{bucket:05d}" for bucket in range(count)]
        self._buffer = np.empty((max(memory_bytes // _BYTES_PER_BUFFERED, 1), 2), "<u8")
        self._filled = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.paths:
            path.unlink(missing_ok=True)

    def add(self, keys: NDArray[np.uint64], owners: NDArray[np.uint64]) -> None:
        """Append records; both arrays are [n]."""
        done = 0
        while done < len(keys):
            taken = min(len(keys) - done, len(self._buffer) - self._filled)
            into = self._buffer[self._filled : self._filled + taken]
            into[:, 0] = keys[done : done + taken]
            into[:, 1] = owners[done : done + taken]
            done += taken
            self._filled += taken
            if self._filled == len(self._buffer):
                self._flush()

    def _flush(self) -> None:
        records = self._buffer[: self._filled]
        buckets = (records[:, 0] % np.uint64(len(self.paths))).astype(np.uint32)
        order = np.argsort(buckets, kind="stable")
        ordered = records[order]
        ends = np.cumsum(np.bincount(buckets, minlength=len(self.paths)))
        start = 0
        for path, end in zip(self.paths, ends, strict=True):
            if end > start:
                # Reopened every time: there may be more buckets than file descriptors.
                with open(path, "ab") as file:
                    ordered[start:end].tofile(file)
            start = end
        self._filled = 0

    def close(self) -> None:
        """Write the remaining records."""
        self._flush()
        self._buffer = self._buffer[:0]
        for path in self.paths:
            path.touch()


Share = tuple[int, int]  # (i, n): the records whose keys fall in share i of n
_WHOLE_BUCKET: Share = (0, 1)


def divide_into_shares(files: list[Path], memory_bytes: int) -> list[Share]:
    """Divide a bucket into shares that fit in this much memory."""
    count = sum(path.stat().st_size for path in files) // memory_bytes + 1
    return [(i, count) for i in range(count)]


def find_later_owners(files: list[Path], share: Share = _WHOLE_BUCKET) -> NDArray[np.uint64]:
    """Return the sorted owners that share a key with a smaller owner. `files` are those of one bucket."""
    keys, owners = _sorted_records(files, share)
    later = owners > owners[_first_in_group(keys)]
    return np.unique(owners[later])


def earlier_pairs(
    files: list[Path], candidates: int = 8, apart: int = 1, share: Share = _WHOLE_BUCKET
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return positions [n] and, for each, an earlier position [n] with the same key, sorted lexicographically.

    Args:
        files: files of one bucket, of all partitions.
        candidates: maximum pairs per position: with the earliest position of equal key and the closest ones before it.
            Equal keys do not guarantee equal text around them; a position with equal text is nearly always among these.
        apart: minimum distance of a pair in bytes. Pairs closer than the `length` of `repeated_spans` are useless to
            it, and text such as "-----" has them at every byte.
        share: part of the records to process.
    """
    keys, positions = _sorted_records(files, share)
    first = _first_in_group(keys)
    place = np.arange(len(keys))
    place = place[place > first]
    later, found = [positions[place]], [positions[first[place]]]
    for back in range(1, candidates):
        place = place[place - back > first[place]]  # the earliest is included already
        if not len(place):
            break
        later.append(positions[place])
        found.append(positions[place - back])
    records = np.stack([np.concatenate(later), np.concatenate(found)], axis=1)
    records = records[records[:, 0] - records[:, 1] >= np.uint64(apart)]
    order = np.lexsort((records[:, 1], records[:, 0]))
    return records[order, 0], records[order, 1]


def _sorted_records(files: list[Path], share: Share) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return keys and owners of a share of the records, sorted by key, then by owner."""
    records = np.concatenate([np.zeros((0, 2), "<u8"), *(_read(path, share) for path in files)])
    order = np.lexsort((records[:, 1], records[:, 0]))
    return records[order, 0], records[order, 1]


def _read(path: Path, share: Share) -> NDArray[np.uint64]:
    try:
        if path.stat().st_size % _RECORD_BYTES:
            raise CramError(f"{path}: truncated within a record; remove the build's work folder and build again")
        if share == _WHOLE_BUCKET:
            return np.fromfile(path, "<u8").reshape(-1, 2)
        mine = []
        with open(path, "rb") as file:
            while len(records := np.fromfile(file, "<u8", 2 * _RECORDS_PER_READ).reshape(-1, 2)):
                # Upper bits, because the lower ones chose the bucket.
                mine.append(records[(records[:, 0] >> np.uint64(40)) % np.uint64(share[1]) == share[0]])
        return np.concatenate([np.zeros((0, 2), "<u8"), *mine])
    except FileNotFoundError:
        raise CramError(f"{path}: missing; remove the build's work folder and build again") from None


def _first_in_group(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return for every position in sorted keys the first position with the same key."""
    starts = np.ones(len(keys), bool)
    starts[1:] = keys[1:] != keys[:-1]
    return np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
