"""Which rows a step takes and which of them are this rank's; and so which blocks will be needed, in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cram_composer.data.loading.block_order import Order
from cram_composer.data.loading.mixture import apportion
from cram_composer.errors import CramError

Key = tuple[int, int]  # an order, and the number of a block in it
Span = tuple[Key, int, int]  # a block, the first of its rows and the one after the last


class Plan:
    """RemoteDataset in one or more endless sequences of rows, shared out among ranks.

    Each step takes `rows` x `world_size` rows, from all `orders` in the proportions `shares`, which may be changed
    between steps; rank r gets rows [r x rows, (r + 1) x rows) of them, whatever the number of ranks.
    """

    def __init__(self, orders: Sequence[Order], rank: int, world_size: int) -> None:
        self.orders = list(orders)
        self.shares = [1.0 / len(orders)] * len(orders)
        self.next = [0] * len(orders)  # the row of each order that comes next
        self._owed = [0.0] * len(orders)
        self._rank, self._world_size = rank, world_size
        self._step: tuple[int, list[float]] | None = None  # rows and shares of the last step
        self._wanted: dict[Key, None] = {}  # what will be needed, in order
        self._future: Iterator[Key] = iter(())

    def state_dict(self) -> dict[str, Any]:
        """The place of the whole run: the same on all ranks, good for any number of them."""
        return {"rows": list(self.next), "owed": list(self._owed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a place that a plan of the same orders reported."""
        if len(state["rows"]) != len(self.orders):
            raise CramError(f"the checkpoint is of {len(state['rows'])} data streams, this run has {len(self.orders)}")
        self.next, self._owed = list(state["rows"]), list(state["owed"])
        self._step = None

    def step(self, rows: int) -> tuple[list[Span], list[int]]:
        """This rank's part of the next step, and the rows that the step takes of each order. Changes no place."""
        if self._step != (rows, self.shares):
            # What was foreseen was for steps of another kind.
            self._step = (rows, list(self.shares))
            self._wanted.clear()
            self._future = self._foresee(rows)
        counts, _ = self._share_out(rows, self._owed)
        return list(self._mine(rows, self.next, counts)), counts

    def advance(self, rows: int, counts: list[int]) -> None:
        """The step is done."""
        _, self._owed = self._share_out(rows, self._owed)
        self.next = [row + count for row, count in zip(self.next, counts, strict=True)]
        for order, row in zip(self.orders, self.next, strict=True):
            order.forget(row)

    def is_over(self, key: Key) -> bool:
        """Whether no rank will need the block again."""
        return self.orders[key[0]].span(key[1])[1] <= self.next[key[0]]

    def block(self, key: Key) -> int:
        """The id of a block."""
        return self.orders[key[0]].block(key[1])

    def pop(self) -> Key:
        """The block that will be needed next, of those foreseen."""
        key = next(iter(self._wanted))
        del self._wanted[key]
        return key

    def drop(self, key: Key) -> None:
        """The block has been had in another way."""
        self._wanted.pop(key, None)

    def foresee(self, count: int, known: set[Key]) -> list[Key]:
        """Foresee `count` blocks that are not `known`; returns those that are new."""
        new = []
        while len(self._wanted) < count:
            key = next(self._future)
            if key not in self._wanted and key not in known:
                self._wanted[key] = None
                new.append(key)
        return new

    def _foresee(self, rows: int) -> Iterator[Key]:
        """The blocks that this rank will need if all steps are like this one."""
        place, owed = list(self.next), list(self._owed)
        while True:
            counts, owed = self._share_out(rows, owed)
            for key, _, _ in self._mine(rows, place, counts):
                yield key
            place = [row + count for row, count in zip(place, counts, strict=True)]

    def _share_out(self, rows: int, owed: list[float]) -> tuple[list[int], list[float]]:
        count = rows * self._world_size
        return ([count], owed) if len(self.orders) == 1 else apportion(count, self.shares, owed)

    def _mine(self, rows: int, place: list[int], counts: list[int]) -> Iterator[Span]:
        before = 0
        for which, count in enumerate(counts):
            first = place[which] + max(self._rank * rows - before, 0)
            last = place[which] + min((self._rank + 1) * rows - before, count)
            order = self.orders[which]
            if first < last:
                for number in range(order.number_at(first), order.number_at(last - 1) + 1):
                    start, end = order.span(number)
                    yield (which, number), max(first, start) - start, min(last, end) - start
            before += count
