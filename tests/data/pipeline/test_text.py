from __future__ import annotations

import io

import pytest

from cram_composer.data.pipeline.sources.columns import DOCUMENT_ENDS, document_pieces
from cram_composer.data.pipeline.text import PIECE_CHARACTERS, SPLITS, Piece, read_pieces, split_documents


def documents_of(pieces) -> list[str]:
    """Join pieces to whole documents."""
    documents, parts = [], []
    for piece in pieces:
        parts.append(piece.text)
        if piece.last:
            documents.append("".join(parts))
            parts = []
    assert not parts, "the last document has no end"
    return documents


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", ["one\ntwo\n\n\nthree"]),
        ("line", ["one\n", "two\n", "\n", "\n", "three"]),
        ("blank-line", ["one\ntwo\n\n", "\n", "three"]),
    ],
)
def test_read_pieces_ends_documents(document, expected):
    assert documents_of(read_pieces(io.StringIO("one\ntwo\n\n\nthree"), DOCUMENT_ENDS[document])) == expected


def test_long_documents_come_in_bounded_pieces_that_tear_no_word():
    text = " ".join(f"word{i}" for i in range(100_000))
    pieces = list(document_pieces(text))
    assert len(pieces) > 10
    assert max(len(piece.text) for piece in pieces) <= 2 * PIECE_CHARACTERS
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert " ".join(piece.text for piece in pieces).split() == text.split()


def test_text_without_spaces_is_cut():
    pieces = list(document_pieces("x" * (5 * PIECE_CHARACTERS)))
    assert max(len(piece.text) for piece in pieces) <= 2 * PIECE_CHARACTERS
    assert documents_of(pieces) == ["x" * (5 * PIECE_CHARACTERS)]


def test_lone_surrogates_are_replaced():
    (piece,) = document_pieces("a\ud800b")
    assert piece.text == "a?b"


def splits_by_text(texts: list[str], seed: int = 0) -> dict[str, int]:
    return {p.text: p.split for p in split_documents((Piece(t, True) for t in texts), 0.3, seed)}


def test_split_depends_on_nothing_but_text_and_seed(documents):
    forwards = splits_by_text(documents)
    assert splits_by_text(documents[::-1][:50]) == {t: forwards[t] for t in documents[-50:]}
    assert splits_by_text(documents, seed=1) != forwards
    assert 0.2 < sum(forwards.values()) / len(forwards) < 0.4


def test_duplicates_are_in_the_same_split(documents):
    for text in documents[:50]:
        twins = [Piece(text, True), Piece(f"  {text.upper()} \n", True)]
        assert len({p.split for p in split_documents(twins, 0.5, 0)}) == 1


def test_all_pieces_of_a_document_are_in_the_same_split():
    for number in range(20):
        pieces = [Piece(f"start {number}", False), Piece("middle", False), Piece("", True), Piece("next", True)]
        *document, following = split_documents(pieces, 0.5, 0)
        assert len({p.split for p in document}) == 1
        assert [p.first for p in document] == [True, False, False]
        assert following.first
        assert SPLITS[following.split] in SPLITS


def test_documents_without_text_are_dropped():
    assert list(split_documents([Piece(" \n", True), Piece("", False), Piece("\t", True)], 0.5, 0)) == []
