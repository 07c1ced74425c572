"""Random numbers that belong to the rows of a batch, whoever draws them: ranks each draw those of their own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


class RowRandom:
    """Stands in for a numpy Generator where a batch is shared out among ranks, for arrays [rows, n].

    Each call draws from a stream of its own, set by `seed` and the number of the call; row i of the array comes from
    row `first_row + i` of that stream. What a row gets thus depends neither on `first_row` nor on how many are drawn.
    """

    def __init__(self, seed: Sequence[int], first_row: int) -> None:
        self._seed = list(seed)
        self._first_row = first_row
        self._calls = 0

    def random(self, size: tuple[int, int], dtype: Any = np.float64) -> NDArray:
        """Uniform numbers in [0, 1), [rows, n]."""
        rows, width = size
        if np.dtype(dtype) == np.float64:
            return self._generator(width).random(size)
        # PCG64 makes two float32 of one step, so a row has to be an even number of them.
        even = width + width % 2
        return self._generator(even // 2).random((rows, even), dtype=dtype)[:, :width]

    def integers(self, low: int, high: int, size: tuple[int, int]) -> NDArray[np.int64]:
        """Uniform integers in [low, high), [rows, n]; high - low must be far below 2^53."""
        return low + (self.random(size) * (high - low)).astype(np.int64)

    def _generator(self, steps_per_row: int) -> np.random.Generator:
        bits = np.random.PCG64([*self._seed, self._calls])
        self._calls += 1
        return np.random.Generator(bits.advance(self._first_row * steps_per_row))
