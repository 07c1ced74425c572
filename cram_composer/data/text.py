"""Pieces of documents: how readers hand over text of any length, and which split a document belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TextIO

SPLITS = ("train", "validation")

# Characters a piece is cut at. Memory is bounded by it, not by the longest document, and a batch of pieces is wide
# enough for the tokenizer's threads.
PIECE_CHARACTERS = 1 << 15


class Piece(NamedTuple):
    """A document, or a part of a long one; `last` is where the document ends."""

    text: str
    last: bool


class SplitPiece(NamedTuple):
    """A piece with white space collapsed; `split` is an index into SPLITS, the same for a whole document."""

    split: int
    text: str
    first: bool
    last: bool


def cut(stream: TextIO, ends_document: Callable[[str], bool]) -> Iterator[Piece]:
    """Pieces of a text stream whose documents end after the lines for which `ends_document` is true, and at its end."""
    lines: list[str] = []
    size = 0
    ended = True
    while line := stream.readline(PIECE_CHARACTERS):
        lines.append(line)
        size += len(line)
        ended = ends_document(line)
        if ended:
            yield Piece("".join(lines), True)
            lines, size = [], 0
        elif size >= PIECE_CHARACTERS:
            text, rest = _break("".join(lines))
            yield Piece(text, False)
            lines, size = [rest], len(rest)
    if not ended:
        yield Piece("".join(lines), True)


def _break(text: str) -> tuple[str, str]:
    """Break after the last space or line end, so that no word is torn; a text without any goes whole."""
    end = max(text.rfind(" "), text.rfind("\n")) + 1 or len(text)
    return text[:end], text[end:]


def split_documents(pieces: Iterable[Piece], validation_fraction: float, seed: int) -> Iterator[SplitPiece]:
    """Assign each document to a split; documents without text are dropped.

    A document goes by a keyed hash of its text (of its first piece when it is long), white space collapsed and case
    folded: exact duplicates land in the same split, whatever else the corpus holds and in whatever order.
    """
    key = seed.to_bytes(8, "little")
    threshold = round(validation_fraction * 2**64)
    split: int | None = None
    for piece in pieces:
        text = " ".join(piece.text.split())
        first = split is None
        if split is None:
            if not text:
                continue
            digest = hashlib.blake2b(text.casefold().encode(), digest_size=8, key=key).digest()
            split = int(int.from_bytes(digest, "little") < threshold)
        yield SplitPiece(split, text, first, piece.last)
        if piece.last:
            split = None
