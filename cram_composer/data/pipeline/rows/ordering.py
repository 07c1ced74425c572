"""Keys that put the rows of a split in an order: rows with small keys come first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

_ENDS = (".", "!", "?")


@dataclass(frozen=True)
class RowFacts:
    """What orderings look at besides a row: ids of separators, of sentence ends, of [PAD], and unigram counts [V]."""

    sep_id: int
    pad_id: int
    sentence_end_ids: NDArray
    counts: NDArray


def sentence_end_ids(tokenizer: Tokenizer) -> NDArray:
    """Ids of the tokens that end in a full stop, an exclamation or a question mark."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    return np.array(sorted(i for token, i in vocabulary.items() if token.endswith(_ENDS)), np.int64)


def unigram_likelihood(rows: NDArray, facts: RowFacts) -> NDArray:
    """Minus the mean log probability (nats) of a row's tokens under their frequencies in the split: likely rows first.

    Geiping and Goldstein 2022, section 4.4: sequences sorted by their average unigram prevalence, likely ones first.
    [PAD] is left out of the mean.
    """
    nats = np.log(facts.counts.sum()) - np.log(np.maximum(facts.counts, 1))
    real = rows != facts.pad_id
    return np.where(real, nats[rows], 0.0).sum(axis=1) / np.maximum(real.sum(axis=1), 1)


def sentence_length(rows: NDArray, facts: RowFacts) -> NDArray:
    """Mean length in tokens of a row's sentences, the one cut off at its end included: short sentences first."""
    real = (rows != facts.pad_id).sum(axis=1)
    return real / (np.isin(rows, facts.sentence_end_ids).sum(axis=1) + 1)


def fragment(rows: NDArray, facts: RowFacts) -> NDArray:
    """Number of document ends in a row: whole stretches of text first, rows of many fragments last."""
    return (rows == facts.sep_id).sum(axis=1).astype(np.float64)


# Orderings by the name that the `ordering` key of a data build gives them; `random` needs no keys.
ORDERINGS: dict[str, Callable[[NDArray, RowFacts], NDArray]] = {
    "unigram-likelihood": unigram_likelihood,
    "sentence-length": sentence_length,
    "fragment": fragment,
}
