"""Packing: token ids of consecutive documents become rows of one length, kept in a file until they are shuffled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


class Packer:
    """Rows of one split. The documents' ids are concatenated and chopped (Geiping and Goldstein 2022, section 4.1).

    `counts` [vocab_size] is how often each id is in the rows; `rows` how many there are, a whole number of
    `unit_rows` unless there are fewer in all. What does not fill a unit at the end stays out and is `dropped_tokens`.
    """

    def __init__(self, path: Path, sequence_length: int, vocab_size: int, dtype: np.dtype, unit_rows: int = 1) -> None:
        self.path = path
        self.counts = np.zeros(vocab_size, np.int64)
        self.rows = 0
        self._sequence_length = sequence_length
        self._unit = sequence_length * unit_rows
        self._dtype = dtype
        self._rest = np.zeros(0, dtype)
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()

    @property
    def dropped_tokens(self) -> int:
        """Tokens at the end that do not fill a unit of rows."""
        return len(self._rest)

    def add(self, ids: list[int]) -> None:
        """Append token ids."""
        self._write(np.concatenate([self._rest, np.array(ids, self._dtype)]), self._unit)

    def close(self) -> None:
        """Finish the file."""
        if not self.rows:
            self._write(self._rest, self._sequence_length)
        self._file.close()

    def _write(self, tokens: NDArray, unit: int) -> None:
        used = len(tokens) // unit * unit
        full: NDArray = tokens[:used]
        full.tofile(self._file)
        self.counts += np.bincount(full, minlength=len(self.counts))
        self.rows += used // self._sequence_length
        self._rest = tokens[used:].copy()


def unigram_nats(train_counts: NDArray, validation_counts: NDArray, special_ids: list[int]) -> float:
    """Cross-entropy (nats per token) on validation counts of the train counts' add-one-smoothed unigram distribution.

    Both count arrays are [vocab_size]; special tokens are left out of both. What a model must beat to have learnt more
    than word frequencies.
    """
    ordinary = np.ones(len(train_counts), bool)
    ordinary[special_ids] = False
    smoothed = train_counts[ordinary] + 1.0
    held_out = validation_counts[ordinary]
    log_probability = np.log(smoothed) - np.log(smoothed.sum())
    return float(-(held_out * log_probability).sum() / held_out.sum())
