"""From blocks to training batches: rows in batches of any size on any number of ranks, masked as they leave.

The batch and row sizes are attributes that budget-driven algorithms set between steps. The place in the data is that
of the whole run, exact to the row: it depends neither on those sizes nor on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cram_composer.data.loading.block_order import Order
from cram_composer.data.loading.block_reader import BlockReader, Failure, Request, abandon, only, set_up_worker
from cram_composer.data.loading.plan import Key, Plan
from cram_composer.data.loading.shards import Blocks
from cram_composer.data.masking import MaskedLMCollator
from cram_composer.data.masking.row_random import RowRandom
from cram_composer.errors import CramError

Batch = dict[str, torch.Tensor]
_REQUESTS_PER_WORKER = 4
_MASKS = 1  # beside a run's seed: other numbers than those of what else is drawn with it


class RowStream:
    """Rows of a data set without end: each step takes the next ones, and this rank its share of them (see Plan).

    There is one sequence of rows for each of `orders`. `prefetch` is the number of this rank's blocks whose shards are
    asked for ahead; `num_workers` processes read, which are silent for at most `timeout` seconds.
    """

    def __init__(
        self,
        blocks: Blocks,
        orders: Sequence[Order],
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        timeout: float = 300.0,
        prefetch: int = 64,
    ) -> None:
        self.plan = Plan(orders, rank, world_size)
        self._num_workers, self._timeout = num_workers, timeout
        self._where = blocks.streams[0].local
        self._reader = BlockReader(blocks)
        self._requests = _Requests(self.plan, blocks, prefetch)
        self._arrivals: Iterator[tuple[Key, NDArray | Failure]] | None = None
        self._held: dict[Key, NDArray | Failure] = self._requests.held

    @property
    def epochs(self) -> float:
        """Times that the run has gone through the data."""
        return sum(self.plan.next) / self.rows_per_epoch

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch of every order."""
        return sum(order.rows_per_epoch for order in self.plan.orders)

    def take(self, rows: int) -> NDArray:
        """This rank's part of the next step, [rows, sequence_length]. Raises CramError, one line."""
        spans, counts = self.plan.step(rows)
        parts = [self._block(key)[first:last] for key, first, last in spans]
        self.plan.advance(rows, counts)
        for key in [key for key in self._held if self.plan.is_over(key)]:
            del self._held[key]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def state_dict(self) -> dict[str, Any]:
        """The place of the whole run: the same on all ranks, good for any number of them."""
        return self.plan.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a place that a stream of the same data reported."""
        if self._arrivals is not None:
            raise RuntimeError("a place is set before rows are taken")
        self.plan.load_state_dict(state)

    def _block(self, key: Key) -> NDArray:
        if self._arrivals is None:
            self._arrivals = self._open()
        in_flight = self._requests.in_flight
        while key not in self._held:
            if key in in_flight or not in_flight:
                self._receive()
            else:  # the step is not like the one that was foreseen
                self.plan.drop(key)
                self._held[key] = self._reader[Request(key, self.plan.block(key), ())][1]
        found = self._held[key]
        if isinstance(found, Failure):
            self._give_up()
            raise CramError(found.message)
        return found

    def _receive(self) -> None:
        assert self._arrivals is not None
        try:
            key, found = next(self._arrivals)
        except RuntimeError as error:  # a reading process is gone, or delivers nothing
            self._give_up()
            raise CramError(f"{self._where}: the data loader failed: {str(error).splitlines()[0]}") from None
        self._requests.in_flight.discard(key)
        if not self.plan.is_over(key):
            self._held[key] = found

    def _give_up(self) -> None:
        arrivals, self._arrivals = self._arrivals, None
        abandon(arrivals)

    def _open(self) -> Iterator[tuple[Key, NDArray | Failure]]:
        workers = self._num_workers
        loader: DataLoader = DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._requests,
            collate_fn=only,
            num_workers=workers,
            timeout=self._timeout if workers else 0,
            prefetch_factor=_REQUESTS_PER_WORKER if workers else None,
            worker_init_fn=set_up_worker,
        )
        return iter(loader)


class _Requests:
    """What is read next, without end: an epoch's end is nothing that a reading process has to know of.

    It does not know the stream it is for: the two would be freed by the garbage collector then, and torch's loader has
    to be freed before its queues are.
    """

    def __init__(self, plan: Plan, blocks: Blocks, prefetch: int) -> None:
        self._plan = plan
        self._blocks = blocks
        self._prefetch = prefetch
        self.in_flight: set[Key] = set()
        self.held: dict[Key, NDArray | Failure] = {}

    def __iter__(self) -> Iterator[Request]:
        while True:
            new = self._plan.foresee(self._prefetch + 1, self.in_flight | self.held.keys())
            key = self._plan.pop()
            self.in_flight.add(key)
            yield Request(key, self._plan.block(key), self._absent(new) if self._prefetch else ())

    def _absent(self, keys: list[Key]) -> tuple[int, ...]:
        shards = dict.fromkeys(self._blocks.shard_of(self._plan.block(key)) for key in keys)
        return tuple(shard for shard in shards if self._blocks.is_remote(shard))


class TrainLoader:
    """The endless training dataloader of one rank.

    `rows` (rows drawn per step), `seq_length`, `truncate`, `mlm_probability` and `stream.plan.shares` may be changed
    between steps. A `seq_length` below the data's cuts every row into pieces of that length, or keeps its head only
    with `truncate`. Masks depend on the step and the row's place in it, not on the ranks that share it.
    """

    def __init__(
        self,
        stream: RowStream,
        collator: MaskedLMCollator,
        *,
        rows: int,
        microbatch: int,
        seq_length: int,
        seed: int,
        rank: int,
    ) -> None:
        self.stream = stream
        self.collator = collator
        self.rows = rows
        self.microbatch = microbatch
        self.data_seq_length = seq_length
        self.seq_length = seq_length
        self.truncate = False
        self.mlm_probability = collator.max_probability
        self.step = 0
        self._random = RowRandom((seed, _MASKS))
        self._rank = rank

    def __iter__(self) -> Iterator[Batch]:
        pins = torch.cuda.is_available()
        while True:
            batch = self._next()
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if pins else batch

    def _next(self) -> Batch:
        rows = self.stream.take(self.rows)
        if self.seq_length < self.data_seq_length:
            rows = rows[:, : self.seq_length] if self.truncate else rows.reshape(-1, self.seq_length)
        random = self._random.at(self.step, self._rank * len(rows))
        self.step += 1
        return self.collator(rows, self.mlm_probability, random)

    def split(self, batch: Batch, microbatch_size: int | float) -> list[Batch]:
        """Microbatches of a batch: as many as the rows drawn make, each with the same number of tokens."""
        count = self.rows // self.microbatch
        pieces = {name: tensor.chunk(count) for name, tensor in batch.items()}
        return [{name: pieces[name][i] for name in pieces} for i in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """The run's place in the data, and the step that seeds its masks; the same on all ranks."""
        return {"stream": self.stream.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a place that `state_dict` reported, on any number of ranks."""
        self.stream.load_state_dict(state["stream"])
        self.step = state["step"]


def evaluation_batches(
    rows: NDArray, collator: MaskedLMCollator, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    """Masked batches of this rank's share of `rows`; the masks of a row depend on nothing but its place and content.

    Rows that do not fill a batch on every rank are left out, so that all ranks do the same number of batches.
    """
    batches = []
    for start in range(0, len(rows) - batch_size * world_size + 1, batch_size * world_size):
        first = start + rank * batch_size
        batches.append(collator(rows[first : first + batch_size], 0.15, np.random.default_rng([0, first])))
    return batches
