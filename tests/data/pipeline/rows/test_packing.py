from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cram_composer.data.pipeline.rows import packing
from cram_composer.data.pipeline.rows.packing import (
    BestFitPacker,
    ChopPacker,
    RowWriter,
    best_fit,
    document_ids,
    separate_sentences,
    unigram_nats,
)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_rows_are_the_stream_chopped(tmp_path, dtype):
    random = np.random.default_rng(0)
    packer = ChopPacker(RowWriter(tmp_path / "rows", 8, 100, np.dtype(dtype)))
    stream: list[int] = []
    for length in (0, 3, 5, 40, 1, 7, 0, 13):
        ids = random.integers(0, 100, length).tolist()
        packer.add(ids)
        stream += ids
    packer.close()
    rows = np.fromfile(tmp_path / "rows", dtype).reshape(-1, 8)
    assert rows.ravel().tolist() == stream[: len(stream) // 8 * 8]
    assert packer.writer.rows == len(rows) == len(stream) // 8
    assert packer.dropped_tokens == len(stream) % 8
    assert packer.writer.counts.tolist() == np.bincount(rows.ravel(), minlength=100).tolist()


def test_unigram_nats_by_hand():
    # Ids 0 and 1 are special. Train: 3 x id 2, 0 x id 3; smoothed 4/5 and 1/5.
    nats = unigram_nats(np.array([50, 7, 3, 0]), np.array([9, 0, 1, 1]), [0, 1])
    assert nats == pytest.approx(-(math.log(4 / 5) + math.log(1 / 5)) / 2)


SEP, PAD = 3, 0


def random_documents(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(5, 100, random.integers(0, longest)).tolist() for _ in range(count)]


def in_pieces(documents: list[list[int]], seed: int = 1) -> Iterator[tuple[list[list[int]], list[bool]]]:
    """Yield the documents cut into random pieces, a few pieces at a time."""
    random = np.random.default_rng(seed)
    ids: list[list[int]] = []
    last: list[bool] = []
    for document in documents:
        cuts = [0, *sorted(random.integers(0, len(document) + 1, random.integers(0, 3)).tolist()), len(document)]
        ids += [document[start:end] for start, end in itertools.pairwise(cuts)]
        last += [False] * (len(cuts) - 2) + [True]
        if random.random() < 0.3:
            yield ids, last
            ids, last = [], []
    yield ids, last


def best_fit_rows(folder: Path, documents: list[list[int]], length: int, whole: bool = False):
    packer = BestFitPacker(RowWriter(folder / "rows", length, 100, np.dtype(np.uint16)), PAD)
    if whole:
        packer.add_documents(documents, [True] * len(documents), SEP)
    else:
        for ids, last in in_pieces(documents):
            packer.add_documents(ids, last, SEP)
    packer.close()
    return packer, np.fromfile(folder / "rows", np.uint16).reshape(-1, length)


def test_chop_takes_pieces_of_documents(tmp_path):
    documents = random_documents(50, 30)
    packer = ChopPacker(RowWriter(tmp_path / "rows", 8, 100, np.dtype(np.uint16)))
    for ids, last in in_pieces(documents):
        packer.add_documents(ids, last, SEP)
    packer.close()
    stream = [token for document in documents for token in [*document, SEP]]
    assert np.fromfile(tmp_path / "rows", np.uint16).tolist() == stream[: len(stream) // 8 * 8]
    assert packer.padding_tokens == 0


@pytest.mark.parametrize("longest", [12, 40, 200])
def test_best_fit_keeps_every_document_and_tears_only_those_longer_than_a_row(tmp_path, monkeypatch, longest):
    monkeypatch.setattr(packing, "_BUFFER_TOKENS", 500)  # packs many times
    documents = random_documents(300, longest)
    packer, rows = best_fit_rows(tmp_path, documents, 32)
    expected = Counter()
    for document in documents:
        ended = [*document, SEP]
        expected.update(tuple(ended[i : i + 32]) for i in range(0, len(ended), 32))
    found = Counter()
    for row in rows.tolist():
        tokens = row[: row.index(PAD)] if PAD in row else row
        assert set(row[len(tokens) :]) <= {PAD}, "padding is at the end"
        while tokens:
            end = tokens.index(SEP) + 1 if SEP in tokens else len(tokens)
            found[tuple(tokens[:end])] += 1
            tokens = tokens[end:]
    assert sum(len(chunk) * times for chunk, times in found.items()) == sum(len(d) + 1 for d in documents)
    assert found == expected
    assert packer.writer.rows == len(rows)
    assert packer.dropped_tokens == 0
    assert packer.padding_tokens == (rows == PAD).sum()
    assert packer.writer.counts.tolist() == np.bincount(rows[rows != PAD], minlength=100).tolist()


def test_best_fit_does_not_depend_on_pieces(tmp_path):
    documents = random_documents(300, 90)
    _, whole = best_fit_rows(tmp_path, documents, 32, whole=True)
    _, pieces = best_fit_rows(tmp_path, documents, 32)
    assert whole.tolist() == pieces.tolist()


def test_best_fit_pads_little(tmp_path):
    documents = random_documents(2000, 64)
    packer, rows = best_fit_rows(tmp_path, documents, 128)
    assert packer.padding_tokens / rows.size < 0.002
    assert len(rows) == -(-sum(len(d) + 1 for d in documents) // 128)


def test_best_fit_takes_the_tightest_row():
    # 60 and 55 open rows with room for 4 and 9; 9 and 4 fit exactly, 3 opens a row.
    assert best_fit(np.array([4, 60, 3, 55, 9]), 64).tolist() == [0, 0, 2, 1, 1]


def test_documents_keep_their_order_within_a_row(tmp_path):
    _, rows = best_fit_rows(tmp_path, [[10], [20, 21, 22], [30, 31]], 16, whole=True)
    assert rows.tolist() == [[10, SEP, 20, 21, 22, SEP, 30, 31, SEP, *[PAD] * 7]]


def test_no_documents_are_no_rows(tmp_path):
    packer, rows = best_fit_rows(tmp_path, [], 32)
    assert packer.writer.rows == len(rows) == packer.padding_tokens == 0


def test_unfinished_document_is_neither_lost_nor_buffered_whole(tmp_path):
    packer = BestFitPacker(RowWriter(tmp_path / "rows", 32, 100, np.dtype(np.uint16)), PAD)
    for _ in range(10):
        packer.add_documents([[9] * 50], [False], SEP)
        assert len(packer._unfinished) < 32
    packer.close()
    rows = np.fromfile(tmp_path / "rows", np.uint16)
    assert (rows == 9).sum() == 500
    assert not (rows == SEP).any()


@pytest.mark.parametrize("kind", ["chop", "best-fit"])
def test_rows_can_begin_with_cls(tmp_path, kind):
    cls, documents = 2, [[10, 11], [20, 21, 22, 23, 24], [30]]
    writer = RowWriter(tmp_path / "rows", 5, 100, np.dtype(np.uint16), cls)
    packer = ChopPacker(writer) if kind == "chop" else BestFitPacker(writer, PAD)
    packer.add_documents(documents, [True] * 3, SEP)
    packer.close()
    rows = np.fromfile(tmp_path / "rows", np.uint16).reshape(-1, 5)
    if kind == "chop":
        assert rows.tolist() == [[cls, 10, 11, SEP, 20], [cls, 21, 22, 23, 24]]
        assert packer.dropped_tokens == 3  # [SEP] 30 [SEP]
    else:
        assert rows.tolist() == [[cls, 20, 21, 22, 23], [cls, 10, 11, SEP, PAD], [cls, 24, SEP, 30, SEP]]
    assert writer.counts.tolist() == np.bincount(rows[rows != PAD], minlength=100).tolist()
    assert writer.rows == len(rows) and packer.padding_tokens == (rows == PAD).sum()


def test_sentences_are_separated():
    dot, mark = 7, 8
    ids = np.array([10, dot, 11, mark, dot, 12, dot], np.uint32)
    separated = separate_sentences(ids, np.array([dot, mark]), SEP)
    assert separated.tolist() == [10, dot, SEP, 11, mark, dot, SEP, 12, dot]
    assert separated.dtype == np.uint32
    assert separate_sentences(ids[:0], np.array([dot]), SEP).tolist() == []


def test_document_ids():
    rows = np.array([[5, 6, SEP, 7, SEP, PAD, PAD], [SEP, SEP, 5, 6, 7, 8, 9]], np.uint16)
    assert document_ids(rows, SEP, PAD).tolist() == [[0, 0, 0, 1, 1, -1, -1], [0, 1, 2, 2, 2, 2, 2]]
    assert document_ids(rows, SEP, PAD).dtype == np.int64
