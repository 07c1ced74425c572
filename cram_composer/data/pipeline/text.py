"""Pieces of documents, which bound memory for text of any length, and the split a document belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TextIO

SPLITS = ("train", "validation")

# Maximum characters of a piece. It bounds memory for long documents, and is long enough that a batch of pieces keeps
# the tokenizer's threads busy.
PIECE_CHARACTERS = 1 << 15

# Beginning of a document that decides its split. Shorter than the first piece of a long document with white space
# collapsed.
_SPLIT_CHARACTERS = 1 << 11


class Piece(NamedTuple):
    """A document, or a part of a long one; `last` marks the end of the document.

    `problem` says why a record, or the rest of a file, cannot be read; the piece has no text and ends the document.
    """

    text: str
    last: bool
    problem: str | None = None


class SplitPiece(NamedTuple):
    """A piece with white space collapsed; `split` is an index into SPLITS, equal for a whole document."""

    split: int
    text: str
    first: bool
    last: bool


def read_pieces(stream: TextIO, ends_document: Callable[[str], bool]) -> Iterator[Piece]:
    """Yield pieces of a text stream; documents end after lines for which `ends_document` is true, and at the end."""
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
            text, rest = _split_at_space("".join(lines))
            yield Piece(text, False)
            lines, size = [rest], len(rest)
    if not ended:
        yield Piece("".join(lines), True)


def _split_at_space(text: str) -> tuple[str, str]:
    """Split after the last space or line end, so that no word is torn; text without spaces stays whole."""
    end = max(text.rfind(" "), text.rfind("\n")) + 1 or len(text)
    return text[:end], text[end:]


def join_pieces(pieces: Iterable[Piece], characters: int) -> Iterator[Piece]:
    """Join pieces up to `characters` or the end of their document."""
    texts: list[str] = []
    size = 0
    for piece in pieces:
        texts.append(piece.text)
        size += len(piece.text)
        if piece.last or size >= characters:
            yield Piece("".join(texts), piece.last, piece.problem)
            texts, size = [], 0


def assign_split(text: str, validation_fraction: float, seed: int) -> int:
    """Return the split (an index into SPLITS) of a document that begins with `text`, white space collapsed.

    The split depends on a keyed hash of the case-folded beginning: exact duplicates land in the same split,
    regardless of the other documents, their order and the length of pieces.
    """
    start = text[:_SPLIT_CHARACTERS].casefold().encode()
    digest = hashlib.blake2b(start, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int(int.from_bytes(digest, "little") < round(validation_fraction * 2**64))


def split_documents(pieces: Iterable[Piece], validation_fraction: float, seed: int) -> Iterator[SplitPiece]:
    """Assign each document to a split by its first piece; drop documents without text."""
    split: int | None = None
    for piece in pieces:
        text = " ".join(piece.text.split())
        first = split is None
        if split is None:
            if not text:
                continue
            split = assign_split(text, validation_fraction, seed)
        yield SplitPiece(split, text, first, piece.last)
        if piece.last:
            split = None
