"""Bounds of a download: its size and its time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


class TooLargeError(Exception):
    """An object with more bytes than allowed."""


class BoundedFile:
    """A file that limits a download: its size, and the time at which the last byte must have arrived.

    Args:
        path: file to write.
        limit: bytes.
        ends: time.monotonic() of the deadline. A read timeout alone restarts with every byte that a server sends.
    """

    def __init__(self, path: Path, limit: int, ends: float) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by __exit__
        self._limit, self._ends, self._size = limit, ends, 0

    def write(self, data: bytes) -> int:
        """Write data. Raises TooLargeError or TimeoutError."""
        self._size += len(data)
        if self._size > self._limit:
            raise TooLargeError(f"sends more than {self._limit} bytes")
        if time.monotonic() > self._ends:
            raise TimeoutError(f"only {self._size} bytes arrived before the deadline")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)  # for clients that expect more of a file

    def __enter__(self) -> BoundedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
