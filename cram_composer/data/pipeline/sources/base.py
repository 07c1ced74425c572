"""What every source is made of: parts (files, or one stream) that can be read from the start again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from cram_composer.data.pipeline.text import Piece


@dataclass(frozen=True)
class Part:
    """A file, or a stream that is not one (`path` None); `expected_bytes` of text, None where nobody knows."""

    name: str
    pieces: Callable[[], Iterator[Piece]]
    expected_bytes: int | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Source:
    """An entry of the manifest's `sources`; `origin` says where it comes from, besides its files."""

    name: str
    kind: str
    licence: str | None
    parts: list[Part]
    origin: dict[str, str | None]
    max_characters: int | None = None

    @property
    def expected_bytes(self) -> int | None:
        """Bytes of text to expect, roughly; None where nobody knows."""
        sizes = [part.expected_bytes for part in self.parts]
        known = [size for size in sizes if size is not None]
        total = sum(known) if len(known) == len(sizes) else None
        if self.max_characters is None:
            return total
        return self.max_characters if total is None else min(self.max_characters, total)

    def pieces(self) -> Iterator[Piece]:
        """Everything to be used of the source, in order."""
        everything = chain.from_iterable(part.pieces() for part in self.parts)
        return iter(everything) if self.max_characters is None else head(everything, self.max_characters)

    def sample(self, characters: int) -> Iterator[Piece]:
        """About so many characters: the head of each file, in proportion to its size; nothing is read whole for it."""
        total = sum(part.expected_bytes or 0 for part in self.parts)
        if total == 0 or self.max_characters is not None:
            return head(self.pieces(), characters)
        heads = (head(part.pieces(), characters * (part.expected_bytes or 0) // total) for part in self.parts)
        return head(chain.from_iterable(heads), characters)


def head(pieces: Iterable[Piece], characters: int) -> Iterator[Piece]:
    """The first pieces, up to the one that reaches `characters`; a document cut off there ends there."""
    left = characters
    for piece in pieces:
        left -= len(piece.text)
        if left <= 0:
            yield piece._replace(last=True)
            return
        yield piece
