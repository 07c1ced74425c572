"""Pieces of documents: how readers hand over text of any length, and which split a document belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TextIO

SPLITS = ("train", "validation")

# Characters a piece is cut at. Memory is bounded by it, not by the longest document, and a batch of pieces is wide
# enough for the tokenizer's threads.
PIECE_CHARACTERS = 1 << 15

# What decides a document's split. Less than the shortest first piece of a long document has, white space collapsed.
_SPLIT_CHARACTERS = 1 << 11


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


def whole(pieces: Iterable[Piece], characters: int) -> Iterator[Piece]:
    """Pieces joined up to `characters` or the end of their document, so that a document is seen whole if it can be."""
    texts: list[str] = []
    size = 0
    for piece in pieces:
        texts.append(piece.text)
        size += len(piece.text)
        if piece.last or size >= characters:
            yield Piece("".join(texts), piece.last)
            texts, size = [], 0


def split_of(text: str, validation_fraction: float, seed: int) -> int:
    """The split (an index into SPLITS) of a document that begins with `text`, white space collapsed.

    A document goes by a keyed hash of its beginning, case folded: exact duplicates land in the same split, whatever
    else the corpus holds, in whatever order, and however long the pieces are that it is read in.
    """
    start = text[:_SPLIT_CHARACTERS].casefold().encode()
    digest = hashlib.blake2b(start, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int(int.from_bytes(digest, "little") < round(validation_fraction * 2**64))


def split_documents(pieces: Iterable[Piece], validation_fraction: float, seed: int) -> Iterator[SplitPiece]:
    """Assign each document to a split by its first piece; documents without text are dropped."""
    split: int | None = None
    for piece in pieces:
        text = " ".join(piece.text.split())
        first = split is None
        if split is None:
            if not text:
                continue
            split = split_of(text, validation_fraction, seed)
        yield SplitPiece(split, text, first, piece.last)
        if piece.last:
            split = None
