"""A unigram language model of pieces (Kudo 2018, arXiv 1804.10959, section 3.2), learnt in numpy.

The trainer of `tokenizers` gives another vocabulary in every process: it adds up in the order of a hash map and of its
threads. This one does the same things in one order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, trainers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.tokenizer.common import (
    MIN_COUNT,
    SPACE,
    SPECIAL_TOKENS,
    check_alphabet_fits,
    configure_spaced_words,
    most_frequent_characters,
)
from cram_composer.data.pipeline.tokenizer.lattice import (
    LONGEST_PIECE,
    LONGEST_WORD,
    LOWEST_PROBABILITY,
    Lattice,
    Words,
    words_by_length,
)

_WORDS = 1 << 18  # different words to learn from, the most frequent
_SEEDS = 8  # pieces to begin with, per piece to end with
_KEPT = 0.75  # share of the pieces that survives a round
_SPARE = 1.1  # pieces, per piece to end with, when the rounds are over
_ITERATIONS = 2  # of expectation-maximisation in a round
_LEAST_COUNT = 0.5  # expected; a piece used less is dropped
_ENCODED_BYTES = 1 << 20  # at a time


def unigram(sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool) -> Tokenizer:
    """Begin with frequent substrings, drop those that are missed least until the vocabulary has its size.

    For a vocabulary of 32768 the lattices of words and pieces take about 150 MiB, whatever the size of the sample.
    """
    unknown = SPECIAL_TOKENS["unk"]
    counter = configure_spaced_words(Tokenizer(models.WordLevel({unknown: 0}, unk_token=unknown)), normalise)
    characters = most_frequent_characters(sample, counter.normalizer.normalize_str, config.limit_alphabet)
    single = sorted({*characters, SPACE})
    check_alphabet_fits(config, len(SPECIAL_TOKENS) + len(single), len(characters))
    words, counts = _count_words(sample, counter, set(single), show_progress)
    pieces = _learn(words_by_length(words, counts), single, config.vocab_size - len(SPECIAL_TOKENS))
    vocabulary = [(token, 0.0) for token in SPECIAL_TOKENS.values()] + pieces
    return configure_spaced_words(
        Tokenizer(models.Unigram(vocabulary, unk_id=list(SPECIAL_TOKENS).index("unk"))), normalise
    )


def _count_words(sample: Path, counter: Tokenizer, known: set[str], show_progress: bool) -> tuple[list[str], NDArray]:
    """The most frequent words that are made of known characters, and their counts; both passes are `tokenizers`'."""
    trainer = trainers.WordLevelTrainer(
        vocab_size=_WORDS + 1,
        min_frequency=MIN_COUNT,
        special_tokens=[SPECIAL_TOKENS["unk"]],
        show_progress=show_progress,
    )
    counter.train([str(sample)], trainer)
    counts = np.zeros(counter.get_vocab_size(), np.int64)
    with open(sample, encoding="utf-8", newline="\n") as file:
        while lines := file.readlines(_ENCODED_BYTES):
            ids = [np.array(encoding.ids, np.int64) for encoding in counter.encode_batch_fast(lines)]
            counts += np.bincount(np.concatenate(ids), minlength=len(counts))
    found = sorted(counter.get_vocab().items(), key=lambda item: item[1])[1:]
    kept = [(word, number) for word, number in found if len(word) <= LONGEST_WORD and known.issuperset(word)]
    return [word for word, _ in kept], counts[[number for _, number in kept]]


def _learn(groups: list[Words], single: list[str], size: int) -> list[tuple[str, float]]:
    """At most `size` pieces, all of `single` among them, with their log-probabilities, likely ones first."""
    seeds, frequency = _frequent_substrings(groups, _SEEDS * size)
    pieces = np.array([*single, *seeds], dtype=object)
    by_length = words_by_length(list(pieces), np.arange(len(pieces)))
    numbers = [group.counts.astype(np.int64) for group in by_length]  # which piece each of them is
    hashes = np.empty(len(pieces), np.uint64)
    for group, number in zip(by_length, numbers, strict=True):
        *_, (_, _, hashes[number]) = ((s, n, h) for s, n, h in group.substrings(LONGEST_PIECE) if s == 0)
    words, inside = Lattice(groups, hashes), Lattice(by_length, hashes)
    required = np.arange(len(pieces)) < len(single)
    in_use = np.ones(len(pieces), bool)
    probabilities = _normalised(np.append(np.ones(len(single)), frequency))

    def maximised(drop: bool) -> NDArray:
        """Expected counts after a round of expectation-maximisation; changes `probabilities` and `in_use`."""
        nonlocal probabilities, in_use
        for _ in range(_ITERATIONS):
            expected = words.expected_counts(probabilities)
            if drop:
                in_use &= required | (expected >= _LEAST_COUNT)
            expected = np.where(in_use, np.maximum(expected, _LEAST_COUNT), 0.0)
            probabilities = _normalised(expected)
        return expected

    def keep(count: int, expected: NDArray) -> None:
        """Keep the pieces whose loss would lower the likelihood of the text most."""
        nonlocal in_use
        loss = np.zeros(len(pieces))
        for number, instead in zip(numbers, inside.best_without_itself(probabilities), strict=True):
            used = in_use[number] & ~required[number]
            chosen = number[used]
            # Rounded, because the last digits of a logarithm depend on the processor.
            loss[chosen] = np.round(expected[chosen] * np.log(probabilities[chosen] / instead[used]), 3)
        loss[required] = np.inf
        loss[~in_use] = -np.inf
        in_use = np.zeros(len(pieces), bool)
        in_use[np.argsort(-loss, kind="stable")[:count]] = True

    while True:
        expected = maximised(drop=True)
        left = int(in_use.sum())
        if left <= _SPARE * size:
            break
        keep(max(int(_SPARE * size), int(_KEPT * left)), expected)
        probabilities = np.where(in_use, probabilities, 0.0)
    keep(min(size, left), expected)
    probabilities = np.where(in_use, probabilities, 0.0)
    maximised(drop=False)
    scores = np.round(np.log(probabilities[in_use]), 5)
    return sorted(zip(pieces[in_use], scores.tolist(), strict=True), key=lambda item: (-item[1], item[0]))


def _normalised(counts: NDArray) -> NDArray:
    shares = counts / counts.sum()
    return np.where(counts > 0, np.maximum(shares, LOWEST_PROBABILITY), 0.0)


def _frequent_substrings(groups: list[Words], limit: int) -> tuple[list[str], NDArray]:
    """Substrings of two characters or more by how much text they cover, at most `limit`, and their counts."""
    found: list[tuple[NDArray, NDArray, list[str]]] = []
    for size in range(2, LONGEST_PIECE + 1):
        spans = [
            (hashed, group.counts, np.full(len(hashed), number), np.full(len(hashed), start), np.arange(len(hashed)))
            for number, group in enumerate(groups)
            for start, length, hashed in group.substrings(size)
            if length == size
        ]
        if not spans:
            break
        hashes, weights, number, start, column = (np.concatenate(part) for part in zip(*spans, strict=True))
        _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
        counts = np.bincount(inverse, weights)
        best = np.lexsort((first, -counts))[:limit]
        best = best[counts[best] >= MIN_COUNT]
        texts = [
            "".join(map(chr, groups[number[i]].characters[start[i] : start[i] + size, column[i]].tolist()))
            for i in first[best]
        ]
        found.append((counts[best] * size, counts[best], texts))
    if not found:
        return [], np.zeros(0)
    covered, counts = (np.concatenate(part) for part in list(zip(*found, strict=True))[:2])
    texts = [text for *_, some in found for text in some]
    chosen = np.argsort(-covered, kind="stable")[:limit]
    return [texts[i] for i in chosen], counts[chosen]
