"""Random numbers tied to the rows of a batch: each rank draws those of its own rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PERIOD = 2**128  # of PCG64
# Distance between the numbers of two calls: the period over the golden ratio, as in numpy's PCG64.jumped. A power of
# two would leave them correlated.
_CALL_STRIDE = 0x9E3779B97F4A7C15F39CC0605CEDC835
_MAX_CALLS_PER_STEP = 16


class RowRandom:
    """Replacement for a numpy Generator, for arrays [rows, n] of a batch that is divided among ranks.

    Each call draws from its own stretch of one long sequence, determined by `seed`, the step and the number of the
    call; row i of the array comes from row `first_row + i` of that stretch. The numbers of a row thus depend neither on
    `first_row` nor on the number of rows drawn. One sequence is used because seeding another takes ten times as long as
    drawing a small batch.
    """

    def __init__(self, seed: Sequence[int]) -> None:
        self._bits = np.random.PCG64(list(seed))
        self._generator = np.random.Generator(self._bits)
        self._position = 0  # of the generator in its sequence
        self.seek(0, 0)

    def seek(self, step: int, first_row: int) -> RowRandom:
        """Return this object, positioned before the first call of a step."""
        self._call_start = _CALL_STRIDE * _MAX_CALLS_PER_STEP * step
        self._first_row = first_row
        return self

    def random(self, size: tuple[int, int], dtype: Any = np.float64) -> NDArray:
        """Draw uniform numbers in [0, 1), [rows, n]."""
        rows, width = size
        if dtype == np.float64:
            self._advance_to_row(rows, width)
            return self._generator.random(size)
        # PCG64 makes two float32 per step, so each row draws an even number of them.
        even = width + width % 2
        self._advance_to_row(rows, even // 2)
        return self._generator.random((rows, even), dtype=dtype)[:, :width]

    def _advance_to_row(self, rows: int, steps_per_row: int) -> None:
        """Advance to the first row's position in the next stretch, for drawing its rows."""
        start = self._call_start + self._first_row * steps_per_row
        self._bits.advance((start - self._position) % _PERIOD)
        self._position = start + rows * steps_per_row
        self._call_start += _CALL_STRIDE
