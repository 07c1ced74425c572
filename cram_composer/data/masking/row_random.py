"""Random numbers that belong to the rows of a batch, whoever draws them: ranks each draw those of their own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PERIOD = 2**128  # of PCG64
# How far the numbers of two calls are apart in it: the period over the golden ratio, as in numpy's PCG64.jumped. A
# power of two would leave them correlated.
_APART = 0x9E3779B97F4A7C15F39CC0605CEDC835
_CALLS = 16  # at most, of a step


class RowRandom:
    """Stands in for a numpy Generator where a batch is shared out among ranks, for arrays [rows, n].

    Each call draws from a stretch of its own of one long sequence, set by `seed`, the step and the number of the call;
    row i of the array comes from row `first_row + i` of that stretch. What a row gets thus depends neither on
    `first_row` nor on how many are drawn. One sequence is gone about in because to seed another takes ten times as long
    as to draw a small batch.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        self._bits = np.random.PCG64(list(seed))
        self._generator = np.random.Generator(self._bits)
        self._place = 0  # of the generator
        self.at(0, 0)

    def at(self, step: int, first_row: int) -> RowRandom:
        """This, before its first call of a step."""
        self._stretch = _APART * _CALLS * step
        self._first_row = first_row
        return self

    def random(self, size: tuple[int, int], dtype: Any = np.float64) -> NDArray:
        """Uniform numbers in [0, 1), [rows, n]."""
        rows, width = size
        if dtype == np.float64:
            self._go(rows, width)
            return self._generator.random(size)
        # PCG64 makes two float32 of one step, so a row has to be an even number of them.
        even = width + width % 2
        self._go(rows, even // 2)
        return self._generator.random((rows, even), dtype=dtype)[:, :width]

    def _go(self, rows: int, steps_per_row: int) -> None:
        """To the first row's place in the next stretch, from which its rows will be drawn."""
        start = self._stretch + self._first_row * steps_per_row
        self._bits.advance((start - self._place) % _PERIOD)
        self._place = start + rows * steps_per_row
        self._stretch += _APART
