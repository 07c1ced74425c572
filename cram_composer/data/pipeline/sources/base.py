"""Sources and their parts (files, or one stream), which can be read repeatedly from the start."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from cram_composer.data.pipeline.text import Piece

_WORD = re.compile(r"\S+")
_BYTES_PER_WORD = 6  # of English, with its space; for estimates of progress, disk and memory


@dataclass(frozen=True)
class Part:
    """A file or stream of a source.

    Attributes:
        pieces: opens the part and yields its pieces.
        expected_bytes: of text; None if unknown.
        path: None for a stream that is not a file.
    """

    name: str
    pieces: Callable[[], Iterator[Piece]]
    expected_bytes: int | None = None
    path: Path | None = None


@dataclass(frozen=True)
class Source:
    """A named text source with its licence; `origin` is recorded in the manifest beside its files.

    `left_out` counts files of other types in its folders by suffix.
    """

    name: str
    kind: str
    licence: str | None
    parts: list[Part]
    origin: dict[str, str | None]
    max_characters: int | None = None
    max_words: int | None = None
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def is_limited(self) -> bool:
        """True if the source is read in order, up to a number of characters or words."""
        return self.max_characters is not None or self.max_words is not None

    @property
    def expected_bytes(self) -> int | None:
        """Estimated bytes of text; None if unknown."""
        sizes = [part.expected_bytes for part in self.parts]
        known = [size for size in sizes if size is not None]
        total = sum(known) if len(known) == len(sizes) else None
        words = None if self.max_words is None else self.max_words * _BYTES_PER_WORD
        limits = [size for size in (total, self.max_characters, words) if size is not None]
        return min(limits, default=None)

    def pieces(self) -> Iterator[Piece]:
        """Yield all pieces in order, up to `max_characters` and `max_words`."""
        pieces: Iterator[Piece] = chain.from_iterable(part.pieces() for part in self.parts)
        if self.max_characters is not None:
            pieces = head(pieces, self.max_characters)
        return pieces if self.max_words is None else _head_words(pieces, self.max_words)

    def sample(self, characters: int) -> Iterator[Piece]:
        """Yield about this many characters: the head of each file, in proportion to its size."""
        total = sum(part.expected_bytes or 0 for part in self.parts)
        if total == 0 or self.is_limited:
            return head(self.pieces(), characters)
        heads = (head(part.pieces(), characters * (part.expected_bytes or 0) // total) for part in self.parts)
        return head(chain.from_iterable(heads), characters)


def head(pieces: Iterable[Piece], characters: int) -> Iterator[Piece]:
    """Yield the first pieces, up to the one that reaches `characters`; a document cut off there ends there."""
    left = characters
    for piece in pieces:
        left -= len(piece.text)
        if left <= 0:
            yield piece._replace(last=True)
            return
        yield piece


def _head_words(pieces: Iterable[Piece], words: int) -> Iterator[Piece]:
    """Yield the first pieces, the last one cut after the last of `words` words; a document cut off there ends there."""
    left = words
    for piece in pieces:
        count = len(piece.text.split())
        if count >= left:
            last = next(islice(_WORD.finditer(piece.text), left - 1, None))
            yield piece._replace(text=piece.text[: last.end()], last=True)
            return
        left -= count
        yield piece
