"""The documents of one partition on disk, for the stages that compare documents."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_INDEX_DTYPE = np.dtype([("size", "<u4"), ("source", "<u2"), ("split", "u1"), ("flags", "u1")])
_FIRST, _LAST, _DROPPED = 1, 2, 4
_FLUSH_CHUNKS = 4096


class Chunk(NamedTuple):
    """A document, or a part of one longer than 2^20 characters, with white space collapsed.

    Attributes:
        source: index into the sources of the configuration.
        split: index into SPLITS.
        first: the chunk begins its document.
        last: the chunk ends its document.
        text: None if a stage dropped it.
    """

    source: int
    split: int
    first: bool
    last: bool
    text: str | None


class DocumentWriter:
    """Appends chunks to FOLDER/PARTITION.text and their positions to .index and .starts; a context manager."""

    def __init__(self, folder: Path, partition: int) -> None:
        self.bytes = 0
        self.chunks = 0
        self._records: list[tuple[int, int, int, int]] = []
        self._starts: list[int] = []
        self._text_file = open(folder / f"{partition:05d}.text", "wb")  # noqa: SIM115 - closed by __exit__
        self._index_file = open(folder / f"{partition:05d}.index", "wb")  # noqa: SIM115
        self._starts_file = open(folder / f"{partition:05d}.starts", "wb")  # noqa: SIM115

    def add(self, chunk: Chunk) -> None:
        """Append a chunk."""
        data = b"" if chunk.text is None else chunk.text.encode()
        flags = _FIRST * chunk.first | _LAST * chunk.last | _DROPPED * (chunk.text is None)
        self._records.append((len(data), chunk.source, chunk.split, flags))
        self._starts.append(self.bytes)
        self._text_file.write(data)
        self.bytes += len(data)
        self.chunks += 1
        if len(self._records) == _FLUSH_CHUNKS:
            self._flush()

    def _flush(self) -> None:
        np.array(self._records, _INDEX_DTYPE).tofile(self._index_file)
        np.array(self._starts, "<u8").tofile(self._starts_file)
        self._records, self._starts = [], []

    def __enter__(self) -> DocumentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._flush()
        self._text_file.close()
        self._index_file.close()
        self._starts_file.close()


_RELEASE_BYTES = 8 << 20  # of text between two calls of `release`


class DocumentStore:
    """Chunks that a DocumentWriter wrote, read through memory maps."""

    def __init__(self, folder: Path, partition: int) -> None:
        self.text: NDArray = _memory_map(folder / f"{partition:05d}.text", np.dtype(np.uint8))
        self._index = _memory_map(folder / f"{partition:05d}.index", _INDEX_DTYPE)
        self.starts = _memory_map(folder / f"{partition:05d}.starts", np.dtype("<u8"))
        self._released = 0

    def __len__(self) -> int:
        return len(self._index)

    def release_before(self, end: int) -> bool:
        """Free the pages of the text before byte `end` if there are many; return True if they were freed."""
        if end - self._released < _RELEASE_BYTES:
            return False
        self.release()
        self._released = end
        return True

    def release(self) -> None:
        """Free the resident pages; otherwise the process grows by all the text it has read."""
        if isinstance(self.text, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.text._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def is_dropped(self, number: int) -> bool:
        """Return True if the chunk was dropped before it was written."""
        return bool(self._index[number]["flags"] & _DROPPED)

    def byte_range(self, number: int) -> tuple[int, int]:
        """Return the first byte of a chunk in the file and the byte after its last."""
        start = int(self.starts[number])
        return start, start + int(self._index[number]["size"])

    def read_bytes(self, number: int) -> bytes:
        """Return the UTF-8 text of a chunk."""
        start, end = self.byte_range(number)
        return self.text[start:end].tobytes()

    def with_text(self, number: int, text: str | None) -> Chunk:
        """Return a chunk with another text."""
        record = self._index[number]
        flags = int(record["flags"])
        return Chunk(int(record["source"]), int(record["split"]), bool(flags & _FIRST), bool(flags & _LAST), text)


def _memory_map(path: Path, dtype: np.dtype) -> NDArray:
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
