"""Units of masking: words and spans of words, as columns of rows [B, L], vectorized."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

MAX_WORD_TOKENS = 10  # maximum number of tokens masked together
# SpanBERT, section 3.1: lengths in words are geometric, truncated at the longest.
SPAN_STOP_PROBABILITY = 0.2
MAX_SPAN_WORDS = 10


def word_starts(rows: NDArray, joins: NDArray, longest: int) -> NDArray[np.int64]:
    """Return the column, int64 [B, L], of the first token of the word that each token of `rows` [B, L] belongs to.

    `joins` is the table of `words.word_joins`; a row's first token starts a word. A word of more than `longest` tokens
    is split: text without spaces would otherwise be one word and use up all masked tokens of a row.
    """
    marks = joins[rows]
    starts = np.ones(rows.shape, dtype=bool)
    starts[:, 1:] = (marks[:, 1:] & (marks[:, :-1] >> 4)) == 0
    first = _nearest_true(starts)
    return first + (np.arange(rows.shape[1]) - first) // longest * longest


def span_starts(words: NDArray, ends: NDArray, chance: NDArray) -> NDArray[np.int64]:
    """Return the column, int64 [B, L], of the first token of the span that each token belongs to.

    Spans of whole `words` (see word_starts) tile a row: each has a drawn length, and starts where the previous one ends
    or after a token that ends a document (`ends`, bool [B, L]). Choosing uniformly among the spans of a tiling gives
    them SpanBERT's lengths and every token nearly the same probability. Spans at random starts would overlap and rarely
    reach a row's first tokens. `chance` [B, L] is uniform in [0, 1).
    """
    length = words.shape[1]
    is_start = words == np.arange(length)
    number = np.cumsum(is_start, axis=1) - 1  # of the word in its row
    opening = np.minimum(np.cumsum(span_lengths(chance), axis=1), length)  # index of the words that start a span
    opens = np.zeros((len(words), length + 1), dtype=bool)
    opens[:, 0] = True
    np.put_along_axis(opens, opening, True, axis=1)
    starts = is_start & np.take_along_axis(opens, number, axis=1)
    starts[:, 1:] |= ends[:, :-1]
    return _nearest_true(starts)


def span_lengths(chance: NDArray) -> NDArray[np.int64]:
    """Map uniform numbers in [0, 1) to lengths of the truncated geometric distribution, 3.8 words on average."""
    decay = 1.0 - SPAN_STOP_PROBABILITY
    longer = np.log1p(chance * (decay**MAX_SPAN_WORDS - 1.0)) * (1.0 / math.log(decay))
    return np.minimum(longer.astype(np.int64) + 1, MAX_SPAN_WORDS)


def _nearest_true(starts: NDArray) -> NDArray[np.int64]:
    """Return the nearest column with True at or before each column."""
    return np.maximum.accumulate(np.where(starts, np.arange(starts.shape[1]), 0), axis=1)
