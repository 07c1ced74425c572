"""The order in which the blocks of a data set are read: an endless sequence of numbered blocks and rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class BlockOrder:
    """The blocks of epoch 0, then those of epoch 1, and so on; blocks and their rows are numbered continuously.

    Every epoch has as many blocks and rows as the first; their selection and order may differ.

    Args:
        epoch_blocks: returns the block ids of an epoch in order, [blocks_per_epoch].
        block_rows: rows of each block by id.
    """

    def __init__(self, epoch_blocks: Callable[[int], NDArray[np.int64]], block_rows: NDArray[np.int64]) -> None:
        self._epoch_blocks = epoch_blocks
        self._block_rows = block_rows
        # Usually all blocks have the same size, and positions need no table.
        self._uniform = int(block_rows[0]) if len(block_rows) and (block_rows == block_rows[0]).all() else None
        self._epochs: dict[int, tuple[NDArray, NDArray | None]] = {}
        first, ends = self._epoch_blocks_and_ends(0)
        self.blocks_per_epoch = len(first)
        self.rows_per_epoch = self.blocks_per_epoch * self._uniform if self._uniform else int(ends[-1])  # type: ignore[index]

    def block_at_row(self, row: int) -> int:
        """Return the number of the block that contains row `row`."""
        if self._uniform:
            return row // self._uniform
        epoch, place = divmod(row, self.rows_per_epoch)
        return epoch * self.blocks_per_epoch + int(np.searchsorted(self._block_ends(epoch), place, side="right"))

    def row_range(self, number: int) -> tuple[int, int]:
        """Return the first row of block `number` and the row after its last."""
        if self._uniform:
            return number * self._uniform, (number + 1) * self._uniform
        epoch, index = divmod(number, self.blocks_per_epoch)
        ends, start = self._block_ends(epoch), epoch * self.rows_per_epoch
        return start + (int(ends[index - 1]) if index else 0), start + int(ends[index])

    def block_id(self, number: int) -> int:
        """Return the id of block `number`."""
        epoch, index = divmod(number, self.blocks_per_epoch)
        return int(self._epoch_blocks_and_ends(epoch)[0][index])

    def discard_before(self, row: int) -> None:
        """Free the tables of epochs before row `row`."""
        current = row // self.rows_per_epoch
        for epoch in [epoch for epoch in self._epochs if epoch < current]:
            del self._epochs[epoch]

    def discard_all(self) -> None:
        """Free all tables, after the order of `epoch_blocks` has changed."""
        self._epochs.clear()

    def _block_ends(self, epoch: int) -> NDArray:
        ends = self._epoch_blocks_and_ends(epoch)[1]
        assert ends is not None
        return ends

    def _epoch_blocks_and_ends(self, epoch: int) -> tuple[NDArray, NDArray | None]:
        if epoch not in self._epochs:
            ids = self._epoch_blocks(epoch)
            self._epochs[epoch] = ids, None if self._uniform else np.cumsum(self._block_rows[ids])
        return self._epochs[epoch]
