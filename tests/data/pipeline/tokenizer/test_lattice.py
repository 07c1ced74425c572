"""Sums over all segmentations, compared with explicit enumeration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from cram_composer.data.pipeline.tokenizer.lattice import LONGEST_PIECE, LONGEST_WORD, Lattice, words_by_length

PIECES = ["a", "b", "c", "ab", "bc", "abc", "ca", "cab", "aa", "bcab"]


def hashes_of(pieces: list[str]) -> np.ndarray:
    hashes = np.zeros(len(pieces), np.uint64)
    for group in words_by_length(pieces, np.arange(len(pieces))):
        whole = [h for start, size, h in group.substrings(LONGEST_PIECE) if start == 0][-1]
        hashes[group.counts.astype(int)] = whole
    return hashes


def segmentations(word: str, pieces: list[str]) -> Iterator[list[str]]:
    if not word:
        yield []
    for piece in pieces:
        if word.startswith(piece):
            for rest in segmentations(word[len(piece) :], pieces):
                yield [piece, *rest]


def probability(segmentation: list[str], probabilities: np.ndarray) -> float:
    return float(np.prod([probabilities[PIECES.index(piece)] for piece in segmentation]))


@pytest.fixture
def probabilities() -> np.ndarray:
    random = np.random.default_rng(0).random(len(PIECES))
    random[PIECES.index("aa")] = 0.0  # out of use
    return random / random.sum()


def test_expected_counts(probabilities):
    words, times = ["abcab", "aab", "c", "cabca", "bbbcc"], np.array([3, 1, 7, 2, 5])
    expected: Counter[str] = Counter()
    for word, count in zip(words, times, strict=True):
        found = list(segmentations(word, PIECES))
        weights = np.array([probability(s, probabilities) for s in found])
        for segmentation, share in zip(found, weights / weights.sum(), strict=True):
            for piece in segmentation:
                expected[piece] += share * count
    counts = Lattice(words_by_length(words, times), hashes_of(PIECES)).expected_counts(probabilities)
    np.testing.assert_allclose(counts, [expected[piece] for piece in PIECES])


def test_best_replacement_of_a_piece(probabilities):
    lattice = Lattice(words_by_length(PIECES, np.arange(len(PIECES))), hashes_of(PIECES))
    found = np.concatenate(lattice.best_without_itself(probabilities))
    by_length = sorted(PIECES, key=len)  # stable: the groups' order
    for piece, best in zip(by_length, found, strict=True):
        others = [s for s in segmentations(piece, PIECES) if len(s) > 1]
        assert best == pytest.approx(max((probability(s, probabilities) for s in others), default=0.0))


def test_the_longest_words_do_not_underflow():
    words = ["ab" * (LONGEST_WORD // 2), "a" * (LONGEST_WORD + 1)]
    lattice = Lattice(words_by_length(words, np.array([10**9, 1])), hashes_of(["a", "b"]))
    counts = lattice.expected_counts(np.array([1e-10, 1e-10]))
    np.testing.assert_allclose(counts, LONGEST_WORD / 2 * 1e9)  # the word that is too long is left out


def test_substrings_of_equal_text_have_equal_hashes_and_no_others():
    words = ["abcabc", "bcab", "xabcx"]
    texts: dict[int, set[str]] = {}
    for group in words_by_length(words, np.ones(3)):
        for start, size, hashed in group.substrings(4):
            for column, value in enumerate(hashed.tolist()):
                text = "".join(map(chr, group.characters[start : start + size, column]))
                texts.setdefault(value, set()).add(text)
    assert all(len(found) == 1 for found in texts.values())
    assert len(texts) == len({text for found in texts.values() for text in found})
