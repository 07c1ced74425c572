"""The order in which the blocks of a data set are read: an endless sequence, in which a place is one number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class Order:
    """The blocks of epoch 0, then those of epoch 1, and so on; blocks and their rows are numbered from 0 throughout.

    `epoch_blocks(epoch)` gives the block ids of an epoch in order, [blocks_per_epoch]; `block_rows[id]` the rows of a
    block. Every epoch has as many blocks, and as many rows, as the first: what changes is which ones and their order.
    """

    def __init__(self, epoch_blocks: Callable[[int], NDArray[np.int64]], block_rows: NDArray[np.int64]) -> None:
        self._epoch_blocks = epoch_blocks
        self._block_rows = block_rows
        # Nearly always all blocks are of one size, and a place needs no table.
        self._uniform = int(block_rows[0]) if len(block_rows) and (block_rows == block_rows[0]).all() else None
        self._epochs: dict[int, tuple[NDArray, NDArray | None]] = {}
        first, ends = self._epoch(0)
        self.blocks_per_epoch = len(first)
        self.rows_per_epoch = self.blocks_per_epoch * self._uniform if self._uniform else int(ends[-1])  # type: ignore[index]

    def number_at(self, row: int) -> int:
        """The number of the block that row `row` is in."""
        if self._uniform:
            return row // self._uniform
        epoch, place = divmod(row, self.rows_per_epoch)
        return epoch * self.blocks_per_epoch + int(np.searchsorted(self._ends(epoch), place, side="right"))

    def span(self, number: int) -> tuple[int, int]:
        """The first row of block `number`, and the row after its last."""
        if self._uniform:
            return number * self._uniform, (number + 1) * self._uniform
        epoch, index = divmod(number, self.blocks_per_epoch)
        ends, start = self._ends(epoch), epoch * self.rows_per_epoch
        return start + (int(ends[index - 1]) if index else 0), start + int(ends[index])

    def block(self, number: int) -> int:
        """The id of block `number`."""
        epoch, index = divmod(number, self.blocks_per_epoch)
        return int(self._epoch(epoch)[0][index])

    def forget(self, row: int) -> None:
        """Rows before `row` are not asked for again."""
        current = row // self.rows_per_epoch
        for epoch in [epoch for epoch in self._epochs if epoch < current]:
            del self._epochs[epoch]

    def _ends(self, epoch: int) -> NDArray:
        ends = self._epoch(epoch)[1]
        assert ends is not None
        return ends

    def _epoch(self, epoch: int) -> tuple[NDArray, NDArray | None]:
        if epoch not in self._epochs:
            ids = self._epoch_blocks(epoch)
            self._epochs[epoch] = ids, None if self._uniform else np.cumsum(self._block_rows[ids])
        return self._epochs[epoch]
