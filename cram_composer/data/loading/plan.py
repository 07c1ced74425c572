"""The rows of each step and of each rank, and the order in which blocks will be needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cram_composer.data.loading.block_order import BlockOrder
from cram_composer.data.loading.mixture import apportion
from cram_composer.errors import CramError

BlockKey = tuple[int, int]  # index of an order, and the number of a block in it
RowSpan = tuple[BlockKey, int, int]  # a block, its first row and the row after the last


class ReadPlan:
    """Position in one or more endless sequences of rows, divided among ranks.

    Each step takes `rows` x `world_size` rows from all `orders` in the proportions `shares`, which may change between
    steps. Rank r gets rows [r x rows, (r + 1) x rows) of them, for any number of ranks.
    """

    def __init__(self, orders: Sequence[BlockOrder], rank: int, world_size: int) -> None:
        self.orders = list(orders)
        self.shares = [1.0 / len(orders)] * len(orders)
        self.next = [0] * len(orders)  # next row of each order
        self._owed = [0.0] * len(orders)
        self._rank, self._world_size = rank, world_size
        self._step: tuple[int, list[float]] | None = None  # rows and shares of the last step
        self._upcoming: dict[BlockKey, None] = {}  # blocks needed soon, in order
        self._generator: Iterator[BlockKey] = iter(())

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the whole run: identical on all ranks, valid for any number of them."""
        return {"rows": list(self.next), "owed": list(self._owed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position that a plan of the same orders reported."""
        if len(state["rows"]) != len(self.orders):
            raise CramError(
                f"the checkpoint has {len(state['rows'])} data streams, this run has {len(self.orders)}; "
                "resume with the data of the checkpoint"
            )
        self.next, self._owed = list(state["rows"]), list(state["owed"])
        self._step = None

    def step(self, rows: int) -> list[RowSpan]:
        """Return this rank's spans of the next step, without changing the position."""
        if self._step != (rows, self.shares):
            # The look-ahead assumed another step size or other shares.
            self._step = (rows, list(self.shares))
            self._upcoming.clear()
            self._generator = self._upcoming_blocks(rows)
        counts, _ = self._apportion_rows(rows, self._owed)
        return list(self._rank_spans(rows, self.next, counts))

    def advance(self, rows: int) -> None:
        """Move the position past a step."""
        counts, self._owed = self._apportion_rows(rows, self._owed)
        self.next = [row + count for row, count in zip(self.next, counts, strict=True)]
        for order, row in zip(self.orders, self.next, strict=True):
            order.discard_before(row)

    def is_consumed(self, key: BlockKey) -> bool:
        """Return True if no rank needs the block again."""
        return self.orders[key[0]].row_range(key[1])[1] <= self.next[key[0]]

    def block_id(self, key: BlockKey) -> int:
        """Return the id of a block."""
        return self.orders[key[0]].block_id(key[1])

    def pop_next(self) -> BlockKey:
        """Remove and return the next block of the look-ahead."""
        key = next(iter(self._upcoming))
        del self._upcoming[key]
        return key

    def discard(self, key: BlockKey) -> None:
        """Remove from the look-ahead a block that was read directly."""
        self._upcoming.pop(key, None)

    def look_ahead(self, count: int, known: set[BlockKey]) -> list[BlockKey]:
        """Extend the look-ahead to `count` blocks that are not in `known`; return the added ones."""
        new = []
        while len(self._upcoming) < count:
            key = next(self._generator)
            if key not in self._upcoming and key not in known:
                self._upcoming[key] = None
                new.append(key)
        return new

    def _upcoming_blocks(self, rows: int) -> Iterator[BlockKey]:
        """Yield the blocks that this rank will need if all steps are like this one."""
        place, owed = list(self.next), list(self._owed)
        while True:
            counts, owed = self._apportion_rows(rows, owed)
            for key, _, _ in self._rank_spans(rows, place, counts):
                yield key
            place = [row + count for row, count in zip(place, counts, strict=True)]

    def _apportion_rows(self, rows: int, owed: list[float]) -> tuple[list[int], list[float]]:
        count = rows * self._world_size
        return ([count], owed) if len(self.orders) == 1 else apportion(count, self.shares, owed)

    def _rank_spans(self, rows: int, place: list[int], counts: list[int]) -> Iterator[RowSpan]:
        before = 0
        for stream, count in enumerate(counts):
            first = place[stream] + max(self._rank * rows - before, 0)
            last = place[stream] + min((self._rank + 1) * rows - before, count)
            order = self.orders[stream]
            if first < last:
                for number in range(order.block_at_row(first), order.block_at_row(last - 1) + 1):
                    start, end = order.row_range(number)
                    yield (stream, number), max(first, start) - start, min(last, end) - start
            before += count
