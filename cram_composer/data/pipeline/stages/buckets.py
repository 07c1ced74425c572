"""Who shares a key with whom, in bounded memory: records are dealt out to files by key, and each file is judged alone.

A record is a key and an owner, both 64-bit; an owner is `partition << 40 | index`, so that order is that of the build.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cram_composer.errors import CramError

PARTITION_SHIFT = 40
_RECORD_BYTES = 16
# While a full buffer is written there are beside it: its records in order, bucket numbers and the order itself.
_BYTES_PER_BUFFERED = _RECORD_BYTES + _RECORD_BYTES + 8 + 8


_RECORDS_AT_ONCE = 1 << 18


class BucketWriter:
    """Appends records to `folder/NAME.BUCKET`, BUCKET = key modulo `count` in five digits; takes `memory_bytes`.

    Files of that name that another attempt left are removed first. `close` must be called; a bucket without records
    has an empty file then, so that one that is not there is one that got lost.
    """

    def __init__(self, folder: Path, name: str, count: int, memory_bytes: int) -> None:
        self.paths = [folder / f"{name}.{bucket:05d}" for bucket in range(count)]
        self._buffer = np.empty((max(memory_bytes // _BYTES_PER_BUFFERED, 1), 2), "<u8")
        self._filled = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in self.paths:
            path.unlink(missing_ok=True)

    def add(self, keys: NDArray[np.uint64], owners: NDArray[np.uint64]) -> None:
        """Records; both arrays [n]."""
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
                # Opened anew every time: there may be more buckets than a process may have files open.
                with open(path, "ab") as file:
                    ordered[start:end].tofile(file)
            start = end
        self._filled = 0

    def close(self) -> None:
        """Write what is left."""
        self._flush()
        self._buffer = self._buffer[:0]
        for path in self.paths:
            path.touch()


Share = tuple[int, int]  # (i, n): those of the records whose keys fall in share i of n
_ALL: Share = (0, 1)


def shares(files: list[Path], memory_bytes: int) -> list[Share]:
    """Shares of a bucket that are small enough to be looked at in so much memory, one after the other."""
    count = sum(path.stat().st_size for path in files) // memory_bytes + 1
    return [(i, count) for i in range(count)]


def later_owners(files: list[Path], share: Share = _ALL) -> NDArray[np.uint64]:
    """Owners, sorted, that share a key with a smaller owner. `files` are those of one bucket, of all partitions."""
    keys, owners = _grouped(files, share)
    later = owners > owners[_first_of_group(keys)]
    return np.unique(owners[later])


def pairs(
    files: list[Path], candidates: int = 8, apart: int = 1, share: Share = _ALL
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Positions [n] and, for each, an earlier position [n] with the same key; sorted by the first, then the second.

    `files` are those of one bucket, of all partitions. A position comes up to `candidates` times: with the earliest
    that has its key, and with the ones closest before it. The same key does not mean the same text around it; one
    with the same text is nearly always among these. Pairs that are less than `apart` bytes apart are left out: they
    are of no use to `repeated_spans` if that is its length, and text such as "-----" has them at every byte.
    """
    keys, positions = _grouped(files, share)
    first = _first_of_group(keys)
    place = np.arange(len(keys))
    place = place[place > first]
    later, found = [positions[place]], [positions[first[place]]]
    for back in range(1, candidates):
        place = place[place - back > first[place]]  # the earliest is there already
        if not len(place):
            break
        later.append(positions[place])
        found.append(positions[place - back])
    records = np.stack([np.concatenate(later), np.concatenate(found)], axis=1)
    records = records[records[:, 0] - records[:, 1] >= np.uint64(apart)]
    order = np.lexsort((records[:, 1], records[:, 0]))
    return records[order, 0], records[order, 1]


def _grouped(files: list[Path], share: Share) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Keys and owners of a share of the records, sorted by key, then by owner."""
    records = np.concatenate([np.zeros((0, 2), "<u8"), *(_read(path, share) for path in files)])
    order = np.lexsort((records[:, 1], records[:, 0]))
    return records[order, 0], records[order, 1]


def _read(path: Path, share: Share) -> NDArray[np.uint64]:
    try:
        if path.stat().st_size % _RECORD_BYTES:
            raise CramError(f"{path}: cut off within a record; remove the build's work folder and build again")
        if share == _ALL:
            return np.fromfile(path, "<u8").reshape(-1, 2)
        mine = []
        with open(path, "rb") as file:
            while len(records := np.fromfile(file, "<u8", 2 * _RECORDS_AT_ONCE).reshape(-1, 2)):
                # Upper bits: the bucket was chosen by the lower ones.
                mine.append(records[(records[:, 0] >> np.uint64(40)) % np.uint64(share[1]) == share[0]])
        return np.concatenate([np.zeros((0, 2), "<u8"), *mine])
    except FileNotFoundError:
        raise CramError(f"{path}: missing; remove the build's work folder and build again") from None


def _first_of_group(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For every place in sorted keys, the first place with the same key."""
    starts = np.ones(len(keys), bool)
    starts[1:] = keys[1:] != keys[:-1]
    return np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
