"""What is masked together: tokens, words, or spans of words. Columns of rows [B, L], without a loop over either."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LONGEST_WORD = 10  # tokens that are masked together at most
# SpanBERT, section 3.1: lengths in words are geometric, up to the longest.
SPAN_P = 0.2
LONGEST_SPAN = 10


def word_starts(rows: NDArray, joins: NDArray, longest: int) -> NDArray[np.int64]:
    """The column, int64 [B, L], of the first token of the word that each token of `rows` [B, L] is part of.

    `joins` is the table of `words.word_joins`; a row's first token starts a word. A word of more than `longest` tokens
    counts as several: text without spaces would be one word, and take up all that a row may have masked.
    """
    marks = joins[rows]
    starts = np.ones(rows.shape, dtype=bool)
    starts[:, 1:] = (marks[:, 1:] & (marks[:, :-1] >> 4)) == 0
    first = _last_true(starts)
    return first + (np.arange(rows.shape[1]) - first) // longest * longest


def span_starts(words: NDArray, ends: NDArray, chance: NDArray) -> NDArray[np.int64]:
    """The column, int64 [B, L], of the first token of the span that each token is part of.

    Spans of whole `words` (see word_starts) tile a row: each has a length drawn for it, and starts where the one before
    ends, or after a token that is one of the `ends` (bool [B, L]) of documents. To choose among the spans of a tiling,
    all alike, gives the chosen ones SpanBERT's lengths and every token nearly the same probability. Spans that start at
    random places would overlap, and rarely reach a row's first tokens. `chance` [B, L] is uniform in [0, 1).
    """
    length = words.shape[1]
    is_start = words == np.arange(length)
    number = np.cumsum(is_start, axis=1) - 1  # of the word in its row
    opening = np.minimum(np.cumsum(span_lengths(chance), axis=1), length)  # numbers of the words that start a span
    opens = np.zeros((len(words), length + 1), dtype=bool)
    opens[:, 0] = True
    np.put_along_axis(opens, opening, True, axis=1)
    starts = is_start & np.take_along_axis(opens, number, axis=1)
    starts[:, 1:] |= ends[:, :-1]
    return _last_true(starts)


def span_lengths(chance: NDArray) -> NDArray[np.int64]:
    """Uniform numbers in [0, 1) -> lengths of the truncated geometric distribution, 3.8 words in the mean."""
    decay = 1.0 - SPAN_P
    longer = np.log1p(chance * (decay**LONGEST_SPAN - 1.0)) * (1.0 / math.log(decay))
    return np.minimum(longer.astype(np.int64) + 1, LONGEST_SPAN)


def _last_true(starts: NDArray) -> NDArray[np.int64]:
    """The nearest column with True at or before each column."""
    return np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)
