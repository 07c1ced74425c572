from __future__ import annotations

import random
import string
from pathlib import Path

import numpy as np
import pytest

from cram_composer.data.pipeline.stages.buckets import BucketWriter, earlier_pairs
from cram_composer.data.pipeline.stages.repeats import (
    PartitionText,
    Span,
    find_anchors,
    gram_length,
    remove_spans,
    repeated_spans,
)

EVERY = 1 << 30  # all candidates
Corpus = list[list[bytes]]  # partitions of documents


def removed_by_brute_force(corpus: Corpus, length: int) -> list[list[list[bool]]]:
    """Return for every byte whether it is in a run of `length` bytes with an earlier copy.

    The copy is in an earlier document or, without overlap, in the same one.
    """
    removed = []
    seen: set[bytes] = set()  # runs of earlier documents
    for documents in corpus:
        removed.append([])
        for text in documents:
            gone = [False] * len(text)
            own: dict[bytes, int] = {}
            for start in range(len(text) - length + 1):
                run = text[start : start + length]
                first = own.setdefault(run, start)
                if run in seen or first + length <= start:
                    gone[start : start + length] = [True] * length
            seen |= own.keys()
            removed[-1].append(gone)
    return removed


def spans_of(
    corpus: Corpus, length: int, folder: Path, candidates: int = EVERY, apart: int = 1
) -> list[list[list[Span]]]:
    """Find repeated spans through bucket files, as a build does."""
    buckets = 3
    starts = [np.cumsum([0, *map(len, documents)])[:-1].astype(np.uint64) for documents in corpus]
    texts = [
        PartitionText(np.frombuffer(b"".join(documents), np.uint8), begin)
        for documents, begin in zip(corpus, starts, strict=True)
    ]
    for partition, documents in enumerate(corpus):
        writer = BucketWriter(folder, f"{partition:05d}", buckets, 4000)
        for text, start in zip(documents, starts[partition], strict=True):
            keys, offsets = find_anchors(text, length)
            writer.add(keys, offsets + (np.uint64(partition << 40) + start))
        writer.close()
    files = [[folder / f"{p:05d}.{bucket:05d}" for p in range(len(corpus))] for bucket in range(buckets)]
    found = [earlier_pairs(bucket, candidates, apart) for bucket in files]
    later, earlier = (np.concatenate(columns) for columns in zip(*found, strict=True))
    result = []
    for partition, documents in enumerate(corpus):
        result.append([])
        for text, start in zip(documents, starts[partition], strict=True):
            position = (partition << 40) + int(start)
            mine = (later >= position) & (later < position + len(text))
            offsets = (later[mine] - np.uint64(position)).astype(np.int64)
            spans = repeated_spans(text, offsets, earlier[mine], position, texts.__getitem__, length)
            result[-1].append(spans)
    return result


def flags(text: bytes, spans: list[Span]) -> list[bool]:
    gone = [False] * len(text)
    for start, end in spans:
        assert not any(gone[start:end])
        gone[start:end] = [True] * (end - start)
    return gone


def random_text(rng: random.Random, alphabet: str, size: int) -> str:
    return "".join(rng.choices(alphabet, k=size))


def random_document(rng: random.Random, alphabet: str, earlier: list[str], length: int) -> str:
    """Mix new text, copies from earlier documents, repetitions of the preceding text, and runs of one character."""
    text = ""
    for _ in range(rng.randrange(6)):
        kind = rng.randrange(4)
        size = rng.randrange(3 * length)
        if kind == 0:
            text += random_text(rng, alphabet, size)
        elif kind == 1 and earlier:
            source = rng.choice(earlier)
            start = rng.randrange(len(source) + 1)
            text += source[start : start + size]
        elif kind == 2 and text:
            # Periods shorter and longer than the length.
            period = rng.randrange(1, min(len(text), 2 * length) + 1)
            text += (text[-period:] * (size // period + 1))[:size]
        else:
            text += rng.choice(alphabet) * size
    return text


def random_corpus(seed: int, alphabet: str, length: int) -> Corpus:
    rng = random.Random(seed)
    earlier: list[str] = []
    corpus: Corpus = []
    for _ in range(rng.randrange(1, 4)):
        corpus.append([])
        for _ in range(rng.randrange(5)):
            earlier.append(random_document(rng, alphabet, earlier, length))
            corpus[-1].append(earlier[-1].encode())
    return corpus


ALPHABETS = ["a", "ab", "abc", string.ascii_letters, "aé", "é😀b字", "字宇", string.printable]


@pytest.mark.parametrize("length", [16, 17, 18, 19, 20, 23, 31, 48, 50, 75, 100, 131])
def test_equal_spans_share_an_anchor(length):
    rng = random.Random(length)
    for alphabet in ALPHABETS:
        for _ in range(12):
            span = random_document(rng, alphabet, [], length).encode()[:length]
            span += random_text(rng, alphabet, length).encode()[: length - len(span)]
            found = []
            for _ in range(2):
                before = random_text(rng, alphabet, rng.randrange(3 * length)).encode()
                after = random_text(rng, alphabet, rng.randrange(3 * length)).encode()
                keys, offsets = find_anchors(before + span + after, length)
                inside = (offsets >= len(before)) & (offsets + gram_length(length) <= len(before) + length)
                found.append(set(zip(keys[inside].tolist(), (offsets[inside] - len(before)).tolist(), strict=True)))
            assert found[0] & found[1]


@pytest.mark.parametrize("length", [16, 40, 75])
def test_anchors_do_not_depend_on_blocks(length, monkeypatch):
    text = (random_text(random.Random(0), "abc ", 3000) + "x" * 500).encode()
    keys, offsets = find_anchors(text, length)
    gram = gram_length(length)
    by_gram: dict[int, set[bytes]] = {}
    for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True):
        by_gram.setdefault(key, set()).add(text[offset : offset + gram])
    assert all(len(grams) == 1 for grams in by_gram.values())  # a key depends only on the bytes of its gram
    assert len(by_gram) == len({text[o : o + gram] for o in offsets.tolist()})
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr("cram_composer.data.pipeline.stages.repeats._BLOCK", block)
        again = find_anchors(text, length)
        assert again[0].tolist() == keys.tolist()
        assert again[1].tolist() == offsets.tolist()


def test_anchors_are_the_same_everywhere():
    keys, offsets = find_anchors(b"The quick brown fox jumps over the lazy dog. Pack my box with five dozen jugs.", 50)
    assert offsets.dtype == np.uint32
    assert dict(zip(offsets.tolist(), keys.tolist(), strict=True)) == {
        8: 2368530809776574968,
        16: 2329321529835455263,
        24: 2123996216743396652,
        28: 747270971664207908,
    }


def test_anchors_are_as_dense_as_winnowing_says():
    text = random_text(random.Random(1), string.ascii_letters, 200_000).encode()
    for length in (16, 50, 75, 100):
        window = length - gram_length(length) + 1
        assert len(find_anchors(text, length)[0]) / len(text) == pytest.approx(2 / (window + 1), rel=0.03)


def whole_characters(text: bytes, gone: list[bool]) -> list[bool]:
    """Mark characters as removed only if all of their bytes are."""
    rounded: list[bool] = []
    for character in text.decode():
        size = len(character.encode())
        rounded += [all(gone[len(rounded) : len(rounded) + size])] * size
    return rounded


def check_against_brute_force(seed: int, alphabet: str, length: int, folder: Path) -> tuple[int, int]:
    """Return the bytes to remove, and those removed with few candidates."""
    corpus = random_corpus(seed, alphabet, length)
    expected = removed_by_brute_force(corpus, length)
    found = spans_of(corpus, length, folder, apart=random.Random(seed).choice([1, length]))
    some = spans_of(corpus, length, folder, candidates=2)
    counts = [0, 0]
    for documents, all_gone, all_spans, some_spans in zip(corpus, expected, found, some, strict=True):
        for text, gone, spans, fewer in zip(documents, all_gone, all_spans, some_spans, strict=True):
            gone = whole_characters(text, gone)
            assert flags(text, spans) == gone
            assert spans == sorted(spans)
            kept = remove_spans(text, spans)
            assert kept == bytes(b for b, is_gone in zip(text, gone, strict=True) if not is_gone)
            # Fewer candidates never remove more.
            few = flags(text, fewer)
            assert all(is_gone for is_gone, found in zip(gone, few, strict=True) if found)
            counts[0] += sum(gone)
            counts[1] += sum(few)
    return counts[0], counts[1]


@pytest.mark.parametrize("length", [16, 17, 21, 30])
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_spans_are_those_of_brute_force(tmp_path, alphabet, length):
    counts = [check_against_brute_force(seed, alphabet, length, tmp_path) for seed in range(15)]
    every, some = np.sum(counts, axis=0)
    assert every > 1000
    assert some > 0.9 * every


def test_spans_do_not_depend_on_what_is_compared_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("cram_composer.data.pipeline.stages.repeats._COMPARED_BYTES", 100)
    monkeypatch.setattr("cram_composer.data.pipeline.stages.repeats._FIRST_STEP", 2)
    monkeypatch.setattr("cram_composer.data.pipeline.stages.repeats._BLOCK", 5)
    for seed in range(15):
        check_against_brute_force(seed, "ab", 16, tmp_path)
        check_against_brute_force(seed, string.ascii_letters, 20, tmp_path)


def fresh(seed: int, size: int) -> bytes:
    """Return text without repeats."""
    return random_text(random.Random(seed), string.ascii_letters + string.digits, size).encode()


def test_the_first_copy_stays(tmp_path):
    a, b, c, d = (fresh(seed, 200) for seed in range(4))
    corpus = [[a + b, c], [b[50:150] + d, b"xy" + c + b"z", b"<" + a + b + b">"]]
    spans = spans_of(corpus, 75, tmp_path)
    kept = [[remove_spans(text, s) for text, s in zip(*both, strict=True)] for both in zip(corpus, spans, strict=True)]
    assert kept == [[a + b, c], [d, b"xyz", b"<>"]]


@pytest.mark.parametrize("period", [1, 2, 7, 49, 50, 51, 74, 75, 76, 150, 1000])
def test_text_that_repeats_itself_keeps_its_first_copy(tmp_path, period):
    unit = fresh(period, period)
    text = b"before" + unit * (20_000 // period) + b"after!"
    [[[span]]] = spans_of([[text]], 75, tmp_path, candidates=8, apart=75)
    # The first copy is at least `length` bytes in whole periods; shorter text does not count as a repeat.
    first = -(-75 // period) * period
    assert span == (6 + first, len(text) - 6)


def test_long_copies_go_whole_with_one_candidate(tmp_path):
    text = fresh(0, 50_000)
    decoy = b" ".join(text[i : i + 60] for i in range(0, 50_000, 61))  # the earliest text with most of the anchors
    spans = spans_of([[decoy, text], [b"<" + text + b">"]], 75, tmp_path, candidates=2)
    assert spans == [[[], []], [[(1, 50_001)]]]


def test_matches_end_with_their_documents(tmp_path):
    a, b = fresh(1, 60), fresh(2, 60)
    # a + b occurs in the partition's text, but in no document.
    assert spans_of([[a, b], [a + b]], 75, tmp_path) == [[[], []], [[]]]
    assert spans_of([[a + b], [a, b]], 75, tmp_path) == [[[]], [[], []]]
    assert spans_of([[b"", a + b, b"", b"", a, b, b"", a + b]], 75, tmp_path)[0][-1] == [(0, 120)]


def test_text_of_equal_hash_is_compared():
    a, b = fresh(1, 100), fresh(2, 100)
    texts = PartitionText(np.frombuffer(a, np.uint8), np.zeros(1, np.uint64))
    wrong = repeated_spans(b, np.array([3]), np.array([5], np.uint64), 1 << 40, lambda partition: texts, 75)
    assert wrong == []


def test_spans_begin_and_end_between_characters(tmp_path):
    # The Greek letters differ in their second byte only; the first belongs to the repeated bytes.
    body = "字" * 10 + "é" * 30 + fresh(3, 40).decode()
    first, second = ("α" + body + "β").encode(), ("γ" + body + "δ").encode()
    [[spans, again]] = spans_of([[first, second]], 75, tmp_path)
    assert spans == []
    assert remove_spans(second, again).decode() == "γδ"


def test_a_text_shorter_than_the_length_has_no_anchor():
    assert len(find_anchors(b"", 75)[0]) == len(find_anchors(fresh(0, 74), 75)[0]) == 0
    assert len(find_anchors(fresh(0, 75), 75)[0]) == 1


def test_remove_spans():
    assert remove_spans(b"0123456789", [(0, 2), (4, 5), (8, 10)]) == b"23567"
    assert remove_spans(b"0123456789", []) == b"0123456789"
