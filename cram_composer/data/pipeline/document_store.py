"""The documents of one partition on disk, for the stages that must see all documents before they can judge one."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_RECORD = np.dtype([("size", "<u4"), ("source", "<u2"), ("split", "u1"), ("flags", "u1")])
_FIRST, _LAST, _DROPPED = 1, 2, 4
_FLUSH = 4096


class Chunk(NamedTuple):
    """A document, or a part of one longer than 2^20 characters, white space collapsed; `text` None was dropped.

    `source` is an index into the configuration's sources, `split` into SPLITS.
    """

    source: int
    split: int
    first: bool
    last: bool
    text: str | None


class TextWriter:
    """Append chunks to FOLDER/PARTITION.text and their places to FOLDER/PARTITION.index; a context manager."""

    def __init__(self, folder: Path, partition: int) -> None:
        self.bytes = 0
        self.chunks = 0
        self._records: list[tuple[int, int, int, int]] = []
        self._starts: list[int] = []
        self._text = open(folder / f"{partition:05d}.text", "wb")  # noqa: SIM115 - closed by __exit__
        self._index = open(folder / f"{partition:05d}.index", "wb")  # noqa: SIM115
        self._places = open(folder / f"{partition:05d}.starts", "wb")  # noqa: SIM115

    def add(self, chunk: Chunk) -> None:
        """Append one chunk."""
        data = b"" if chunk.text is None else chunk.text.encode()
        flags = _FIRST * chunk.first | _LAST * chunk.last | _DROPPED * (chunk.text is None)
        self._records.append((len(data), chunk.source, chunk.split, flags))
        self._starts.append(self.bytes)
        self._text.write(data)
        self.bytes += len(data)
        self.chunks += 1
        if len(self._records) == _FLUSH:
            self._flush()

    def _flush(self) -> None:
        np.array(self._records, _RECORD).tofile(self._index)
        np.array(self._starts, "<u8").tofile(self._places)
        self._records, self._starts = [], []

    def __enter__(self) -> TextWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._flush()
        self._text.close()
        self._index.close()
        self._places.close()


_RELEASE_BYTES = 8 << 20  # of text, after which what has been looked at is let go


class Texts:
    """What a TextWriter wrote, read through the page cache; whoever goes through it says how far with `passed`."""

    def __init__(self, folder: Path, partition: int) -> None:
        self.text: NDArray = _mapped(folder / f"{partition:05d}.text", np.dtype(np.uint8))
        self._index = _mapped(folder / f"{partition:05d}.index", _RECORD)
        self.starts = _mapped(folder / f"{partition:05d}.starts", np.dtype("<u8"))
        self._released = 0

    def __len__(self) -> int:
        return len(self._index)

    def passed(self, end: int) -> bool:
        """The text before byte `end` is done with: let go of it, if it is much; returns whether it was."""
        if end - self._released < _RELEASE_BYTES:
            return False
        self.release()
        self._released = end
        return True

    def release(self) -> None:
        """Let go of the pages that are resident: else a process grows by all the text that it has looked at."""
        if isinstance(self.text, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.text._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def dropped(self, number: int) -> bool:
        """Whether the chunk was dropped before it was written."""
        return bool(self._index[number]["flags"] & _DROPPED)

    def bounds(self, number: int) -> tuple[int, int]:
        """First byte of a chunk in the file and the byte after its last."""
        start = int(self.starts[number])
        return start, start + int(self._index[number]["size"])

    def bytes_of(self, number: int) -> bytes:
        """The UTF-8 text of a chunk."""
        start, end = self.bounds(number)
        return self.text[start:end].tobytes()

    def chunk(self, number: int, text: str | None) -> Chunk:
        """A chunk with another text."""
        record = self._index[number]
        flags = int(record["flags"])
        return Chunk(int(record["source"]), int(record["split"]), bool(flags & _FIRST), bool(flags & _LAST), text)


def _mapped(path: Path, dtype: np.dtype) -> NDArray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
