"""From shards to training batches: blocks of rows from Streaming, rows in batches of any size, masked as they leave.

The batch and row sizes are attributes that budget-driven algorithms set between steps. The position in the data is
exact to the row and does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import StreamingDataset
from torch.utils.data import DataLoader

from cram_composer.data.masking import Masker
from cram_composer.data.stale_memory import remove_stale_memory
from cram_composer.errors import CramError

Batch = dict[str, torch.Tensor]


@dataclass
class Position:
    """Where one rank is: the epoch, the blocks it has used up in it, and the rows taken of the block after those."""

    epoch: int = 0
    blocks: int = 0
    rows: int = 0


class RowStream:
    """Rows of one rank's share of a split, epoch after epoch, the blocks shuffled anew in each."""

    def __init__(self, dataset: StreamingDataset, num_workers: int, timeout_seconds: float, world_size: int) -> None:
        self._dataset = dataset
        self._num_workers = num_workers
        self._timeout = timeout_seconds
        self._world_size = world_size
        self._blocks: Iterator[NDArray] | None = None
        self._rest: list[NDArray] = []
        self.position = Position()

    def seek(self, position: Position) -> None:
        """Continue from a position that an earlier stream of the same world size reported."""
        if self._blocks is not None:
            raise RuntimeError("seek() after rows were taken")
        self.position = Position(position.epoch, position.blocks, 0)
        self._open()
        if position.rows:
            self.take(position.rows)

    def take(self, count: int) -> NDArray:
        """The next `count` rows, [count, sequence_length]."""
        parts: list[NDArray] = []
        missing = count
        while missing:
            if not self._rest:
                self._rest = [self._next_block()]
            block = self._rest.pop()
            part, rest = block[:missing], block[missing:]
            parts.append(part)
            missing -= len(part)
            if len(rest):
                self._rest = [rest]
                self.position.rows += len(part)
            else:
                self.position.blocks += 1
                self.position.rows = 0
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _open(self) -> None:
        # Streaming counts samples over all ranks from the start of the epoch; a sample is a block here.
        state = self._dataset.state_dict(self.position.blocks * self._world_size, from_beginning=True)
        self._dataset.load_state_dict(state | {"epoch": self.position.epoch})
        loader: DataLoader = DataLoader(
            self._dataset,
            batch_size=1,
            collate_fn=_only,
            num_workers=self._num_workers,
            timeout=self._timeout if self._num_workers else 0,
            prefetch_factor=4 if self._num_workers else None,
        )
        self._blocks = iter(loader)

    def _next_block(self) -> NDArray:
        if self._blocks is None:
            self._open()
        assert self._blocks is not None
        for _ in range(2):
            try:
                return next(self._blocks)
            except StopIteration:
                self._end_epoch()
            except RuntimeError as error:
                raise CramError(
                    f"the data loader failed in epoch {self.position.epoch} after {self.position.blocks} blocks of "
                    f"{self._dataset.streams[0].local}: {str(error).splitlines()[0]}"
                ) from error
        raise CramError(f"{self._dataset.streams[0].local}: no rows for this rank; build a larger data set")

    def _end_epoch(self) -> None:
        # Streaming 0.13 can end an epoch early without an error when a shard cannot be read.
        expected = len(self._dataset)
        if self.position.blocks != expected:
            raise CramError(
                f"{self._dataset.streams[0].local}: epoch {self.position.epoch} delivered {self.position.blocks} of "
                f"{expected} blocks: a shard is missing or cannot be read"
            )
        self.position = Position(self.position.epoch + 1)
        self._open()


def _only(samples: list[dict[str, Any]]) -> NDArray:
    return samples[0]["rows"]


class TrainLoader:
    """The endless training dataloader of one rank.

    `rows` (rows drawn per step), `seq_length`, `truncate` and `mlm_probability` may be changed between steps. A
    `seq_length` below the data's cuts every row into pieces of that length, or keeps its head only with `truncate`.
    """

    def __init__(
        self, stream: RowStream, masker: Masker, *, rows: int, microbatch: int, seq_length: int, seed: int, rank: int
    ) -> None:
        self.stream = stream
        self.masker = masker
        self.rows = rows
        self.microbatch = microbatch
        self.data_seq_length = seq_length
        self.seq_length = seq_length
        self.truncate = False
        self.mlm_probability = masker.max_probability
        self.step = 0
        self._seed = seed
        self._rank = rank

    def __iter__(self) -> Iterator[Batch]:
        while True:
            batch = self._next()
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if torch.cuda.is_available() else batch

    def _next(self) -> Batch:
        rows = self.stream.take(self.rows)
        if self.seq_length < self.data_seq_length:
            rows = rows[:, : self.seq_length] if self.truncate else rows.reshape(-1, self.seq_length)
        rng = np.random.default_rng([self._seed, self._rank, self.step])
        self.step += 1
        return self.masker(rows, self.mlm_probability, rng)

    def split(self, batch: Batch, microbatch_size: int | float) -> list[Batch]:
        """Microbatches of a batch: as many as the rows drawn make, each with the same number of tokens."""
        count = self.rows // self.microbatch
        pieces = {name: tensor.chunk(count) for name, tensor in batch.items()}
        return [{name: pieces[name][i] for name in pieces} for i in range(count)]

    def state_dict(self) -> dict[str, Any]:
        """This rank's place in the data, and the step that seeds its masks."""
        return {"position": asdict(self.stream.position), "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a place that `state_dict` reported."""
        self.stream.seek(Position(**state["position"]))
        self.step = state["step"]


def open_split(local: Path, remote: str | None, split: str, *, shuffle: bool, seed: int) -> StreamingDataset:
    """A split of a built data set; hashes are validated on every download (local shards by the pre-flight)."""
    opened = partial(
        StreamingDataset,
        local=str(local),
        remote=remote,
        split=split,
        shuffle=shuffle,
        shuffle_seed=seed,
        shuffle_algo="py1e",
        # One canonical node whatever the hardware: the order of blocks does not depend on how many machines read them.
        num_canonical_nodes=1,
        batch_size=1,
        validate_hash="xxh64" if remote else None,
    )
    try:
        return opened()
    except ValueError as error:
        if "Reused local directory" not in str(error):
            raise
    remove_stale_memory()
    try:
        return opened()
    except ValueError as error:
        raise CramError(f"{local}: another run uses this folder as its cache; give each its own data.local") from error


def read_rows(dataset: StreamingDataset, limit: int) -> NDArray:
    """The first `limit` rows of a split in stored order, [<=limit, sequence_length]."""
    blocks: list[NDArray] = []
    count = 0
    for index in range(dataset.num_samples):
        if count >= limit:
            break
        blocks.append(dataset[index]["rows"])
        count += len(blocks[-1])
    return np.concatenate(blocks)[:limit]


def evaluation_batches(
    rows: NDArray, masker: Masker, batch_size: int, rank: int = 0, world_size: int = 1
) -> list[Batch]:
    """Masked batches of this rank's share of `rows`; the masks of a row depend on nothing but its place and content.

    Rows that do not fill a batch on every rank are left out, so that all ranks do the same number of batches.
    """
    batches = []
    for start in range(0, len(rows) - batch_size * world_size + 1, batch_size * world_size):
        first = start + rank * batch_size
        batches.append(masker(rows[first : first + batch_size], 0.15, np.random.default_rng([0, first])))
    return batches
