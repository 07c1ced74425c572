"""From blocks to training batches: rows in batches of any size on any number of ranks, masked on output.

Batch size and row length are attributes that budget-driven algorithms set between steps. The position in the data is
that of the whole run, exact to the row: it depends neither on those sizes nor on the number of ranks.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cram_composer.data.loading.block_dataset import BlockDataset
from cram_composer.data.loading.block_order import BlockOrder
from cram_composer.data.loading.block_reader import (
    BlockReader,
    ReadFailure,
    ReadRequest,
    identity,
    init_worker,
    kill_workers,
    reader_killed,
)
from cram_composer.data.loading.plan import BlockKey, ReadPlan
from cram_composer.data.masking import MaskedLMCollator, TokenWeights
from cram_composer.data.masking.row_random import RowRandom
from cram_composer.errors import CramError

Batch = dict[str, torch.Tensor]
_REQUESTS_PER_WORKER = 4
_EVALUATION_ROWS = 64  # masked together, with one seed
_MASK_SEED = 1  # second number of the mask seed; separates masks from other uses of the run's seed


class RowStream:
    """Endless rows of a data set: each step takes the next rows and divides them among ranks (see ReadPlan).

    Args:
        orders: one endless sequence of rows per entry.
        num_workers: reader processes.
        timeout: seconds to wait for a reader process.
        prefetch: number of this rank's upcoming blocks whose shards are fetched ahead.
    """

    def __init__(
        self,
        blocks: BlockDataset,
        orders: Sequence[BlockOrder],
        *,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        timeout: float = 300.0,
        prefetch: int = 64,
    ) -> None:
        self.plan = ReadPlan(orders, rank, world_size)
        self._num_workers, self._timeout = num_workers, timeout
        self._blocks = blocks
        self._local_folder = blocks.streams[0].local
        self._reader = BlockReader(blocks)
        self._requests = _RequestSampler(self.plan, blocks, prefetch)
        self._results: Iterator[tuple[BlockKey, NDArray | ReadFailure]] | None = None
        self._blocks_read: dict[BlockKey, NDArray | ReadFailure] = self._requests.blocks_read

    @property
    def epochs(self) -> float:
        """Number of passes of the run through the data."""
        return sum(self.plan.next) / self.rows_per_epoch

    @property
    def shares(self) -> tuple[float, ...]:
        """Proportions of the orders in a step."""
        return tuple(self.plan.shares)

    @property
    def rows_per_epoch(self) -> int:
        """Rows of one epoch of every order."""
        return sum(order.rows_per_epoch for order in self.plan.orders)

    def take(self, rows: int) -> NDArray:
        """Return this rank's part of the next step, [rows, sequence_length]. Raises CramError."""
        taken = self.peek(rows)
        self.advance(rows)
        return taken

    def peek(self, rows: int) -> NDArray:
        """Return what `take` would, without changing the position."""
        parts = [self._get_block(key)[first:last] for key, first, last in self.plan.step(rows)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def advance(self, rows: int) -> None:
        """Move the position past a step."""
        self.plan.advance(rows)
        for key in [key for key in self._blocks_read if self.plan.is_consumed(key)]:
            del self._blocks_read[key]

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the whole run: identical on all ranks, valid for any number of them."""
        return {**self.plan.state_dict(), "shuffle_window": self._blocks.shuffle_window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position that a stream of the same data reported, in the order of that stream."""
        if self._results is not None:
            raise RuntimeError("the position must be set before rows are taken")
        self._blocks.shuffle_window = state.get("shuffle_window", self._blocks.shuffle_window)
        for order in self.plan.orders:
            order.discard_all()
        self.plan.load_state_dict(state)

    def _get_block(self, key: BlockKey) -> NDArray:
        if self._results is None:
            self._results = self._start_loader()
        in_flight = self._requests.in_flight
        while key not in self._blocks_read:
            if key in in_flight or not in_flight:
                self._receive()
            else:  # the step differs from the look-ahead
                self.plan.discard(key)
                self._blocks_read[key] = self._reader[ReadRequest(key, self.plan.block_id(key), ())][1]
        found = self._blocks_read[key]
        if isinstance(found, ReadFailure):
            self._stop_workers()
            raise CramError(found.message)
        return found

    def _receive(self) -> None:
        assert self._results is not None
        try:
            key, found = next(self._results)
        except RuntimeError as error:  # a reader process ended or timed out
            self._stop_workers()
            text = f"{self._local_folder}: the data loader failed: {str(error).splitlines()[0]}"
            raise reader_killed(error) or CramError(text) from None
        self._requests.in_flight.discard(key)
        if not self.plan.is_consumed(key):
            self._blocks_read[key] = found

    def _stop_workers(self) -> None:
        results, self._results = self._results, None
        kill_workers(results)

    def _start_loader(self) -> Iterator[tuple[BlockKey, NDArray | ReadFailure]]:
        workers = self._num_workers
        loader: DataLoader = DataLoader(
            self._reader,
            batch_size=None,
            sampler=self._requests,
            collate_fn=identity,
            num_workers=workers,
            timeout=self._timeout if workers else 0,
            prefetch_factor=_REQUESTS_PER_WORKER if workers else None,
            worker_init_fn=init_worker,
        )
        return iter(loader)


class _RequestSampler:
    """Yields read requests endlessly, so that reader processes need not know about epochs.

    Holds no reference to the stream: a reference cycle would leave both to the garbage collector, but torch's loader
    must be freed before its queues.
    """

    def __init__(self, plan: ReadPlan, blocks: BlockDataset, prefetch: int) -> None:
        self._plan = plan
        self._blocks = blocks
        self._prefetch = prefetch
        self.in_flight: set[BlockKey] = set()
        self.blocks_read: dict[BlockKey, NDArray | ReadFailure] = {}

    def __iter__(self) -> Iterator[ReadRequest]:
        while True:
            new = self._plan.look_ahead(self._prefetch + 1, self.in_flight | self.blocks_read.keys())
            key = self._plan.pop_next()
            self.in_flight.add(key)
            yield ReadRequest(key, self._plan.block_id(key), self._remote_shards(new) if self._prefetch else ())

    def _remote_shards(self, keys: list[BlockKey]) -> tuple[int, ...]:
        shards = dict.fromkeys(self._blocks.shard_of_block(self._plan.block_id(key)) for key in keys)
        return tuple(shard for shard in shards if self._blocks.is_remote(shard))


class _BatchSettings(NamedTuple):
    """All that decides the content of the batch of a step."""

    step: int
    rows: int
    seq_length: int
    truncate: bool
    collator: MaskedLMCollator
    mlm_probability: float
    token_weights: TokenWeights | None
    shares: tuple[float, ...]


class _BatchAhead:
    """A batch that a thread prepares."""

    def __init__(self, prepare: Callable[[_BatchSettings], Batch], settings: _BatchSettings) -> None:
        self._settings = settings
        self._batch: Batch | None = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(prepare,), daemon=True)
        self._thread.start()

    def _run(self, prepare: Callable[[_BatchSettings], Batch]) -> None:
        try:
            self._batch = prepare(self._settings)
        except Exception as error:
            self._error = error

    def wait(self, settings: _BatchSettings) -> Batch | None:
        """Wait for the thread; return its batch, or None if it was prepared with other settings. Raises its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._batch if settings == self._settings else None


class TrainLoader:
    """The endless training dataloader of one rank.

    `rows` (rows drawn per step), `seq_length`, `truncate`, `collator`, `mlm_probability`, `token_weights` and
    `stream.plan.shares` may be changed between steps. A `seq_length` below the data's cuts every row into pieces of
    that length or, with `truncate`, keeps its head only. Masks depend on the step and the row's position in it, not on
    the number of ranks.

    Args:
        pin_memory: for a GPU. Batches are put into page-locked memory, and a thread prepares the next one while the GPU
            computes. A batch whose settings have changed since is prepared again.
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
        pin_memory: bool = False,
    ) -> None:
        self.stream = stream
        self.collator = collator
        self.rows = rows
        self.microbatch = microbatch
        self.data_seq_length = seq_length
        self.seq_length = seq_length
        self.truncate = False
        self.mlm_probability = collator.max_probability
        self.token_weights: TokenWeights | None = None
        self.step = 0
        self._random = RowRandom((seed, _MASK_SEED))
        self._rank = rank
        self._pins = pin_memory
        self._ahead: _BatchAhead | None = None

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self._next_batch()

    def _next_batch(self) -> Batch:
        ahead, self._ahead = self._ahead, None
        settings = self._settings()
        batch = ahead.wait(settings) if ahead is not None else None
        if batch is None:
            batch = self._prepare(settings)
        self.stream.advance(settings.rows)
        self.step += 1
        if self._pins:
            self._ahead = _BatchAhead(self._prepare, self._settings())
        return batch

    def _settings(self) -> _BatchSettings:
        row = self.seq_length, self.truncate, self.collator, self.mlm_probability, self.token_weights
        return _BatchSettings(self.step, self.rows, *row, self.stream.shares)

    def _prepare(self, settings: _BatchSettings) -> Batch:
        rows = self.stream.peek(settings.rows)
        if settings.seq_length < self.data_seq_length:
            length = settings.seq_length
            rows = rows[:, :length] if settings.truncate else rows.reshape(-1, length)
        random = self._random.seek(settings.step, self._rank * len(rows))
        batch = settings.collator(rows, settings.mlm_probability, random, settings.token_weights)
        return {name: tensor.pin_memory() for name, tensor in batch.items()} if self._pins else batch

    def split_batch(self, batch: Batch, microbatch_size: int | float) -> list[Batch]:
        """Split a batch into microbatches; rows that do not fill one are split into its largest common divisor.

        The divisor keeps the number of shapes low, since each is compiled.
        """
        full, rest = divmod(self.rows, self.microbatch)
        divisor = math.gcd(rest, self.microbatch)
        drawn = [self.microbatch] * full + [divisor] * (rest // divisor)
        rows = [count * len(batch["input_ids"]) // self.rows for count in drawn]  # rows of the data may be cut
        pieces = {name: tensor.split(rows) for name, tensor in batch.items()}
        return [{name: pieces[name][i] for name in pieces} for i in range(len(rows))]

    def state_dict(self) -> dict[str, Any]:
        """Return the run's position in the data and the step that seeds its masks; identical on all ranks."""
        return {"stream": self.stream.state_dict(), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position that `state_dict` reported, on any number of ranks."""
        self._ahead = None
        self.stream.load_state_dict(state["stream"])
        self.step = state["step"]


def evaluation_batches(
    rows: NDArray, collator: MaskedLMCollator, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    """Return masked batches of this rank's share of `rows`; masks do not depend on `batch_size` or `world_size`.

    Rows that do not fill a batch on every rank are left out, so that all ranks have the same number of batches.
    """
    starts = range(0, len(rows), _EVALUATION_ROWS)
    masked = [collator(rows[i : i + _EVALUATION_ROWS], 0.15, np.random.default_rng([0, i])) for i in starts]
    whole = {name: torch.cat([part[name] for part in masked]) for name in masked[0]} if masked else {}
    step = batch_size * world_size
    firsts = [start + rank * batch_size for start in range(0, len(rows) - step + 1, step)]
    return [{name: tensor[i : i + batch_size] for name, tensor in whole.items()} for i in firsts]
