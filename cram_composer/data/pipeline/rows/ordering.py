"""Sort keys for the rows of a split; rows with small keys come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_SENTENCE_ENDS = (".", "!", "?")


@dataclass(frozen=True)
class RowFacts:
    """Token ids and unigram counts [V] that orderings need besides the rows."""

    sep_id: int
    pad_id: int
    sentence_end_ids: NDArray
    counts: NDArray


def sentence_end_ids(tokenizer: Tokenizer) -> NDArray:
    """Return the ids of tokens that end in a full stop, an exclamation mark or a question mark."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return np.array(sorted(i for token, i in vocabulary.items() if token.endswith(_SENTENCE_ENDS)), np.int64)


def unigram_likelihood(rows: NDArray, facts: RowFacts) -> NDArray:
    """Return the mean negative log probability (nats) of a row's tokens under their frequencies in the split.

    Likely rows come first: sequences sorted by average unigram prevalence (Geiping and Goldstein 2022, section 4.4).
    [PAD] is left out of the mean.
    """
    nats = np.log(facts.counts.sum()) - np.log(np.maximum(facts.counts, 1))
    real = rows != facts.pad_id
    return np.where(real, nats[rows], 0.0).sum(axis=1) / np.maximum(real.sum(axis=1), 1)


def sentence_length(rows: NDArray, facts: RowFacts) -> NDArray:
    """Return the mean tokens per sentence of a row, including the truncated one; short sentences come first."""
    real = (rows != facts.pad_id).sum(axis=1)
    return real / (np.isin(rows, facts.sentence_end_ids).sum(axis=1) + 1)


def fragment(rows: NDArray, facts: RowFacts) -> NDArray:
    """Return the number of document ends in a row; rows of many fragments come last."""
    return (rows == facts.sep_id).sum(axis=1).astype(np.float64)


# Orderings by their name in the `ordering` key of a data build; `random` needs no keys.
ORDERINGS: dict[str, Callable[[NDArray, RowFacts], NDArray]] = {
    "unigram-likelihood": unigram_likelihood,
    "sentence-length": sentence_length,
    "fragment": fragment,
}
