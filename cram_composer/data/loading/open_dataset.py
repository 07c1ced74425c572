"""Open a prepared data set as a stream or an array of rows."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming.base.distributed import barrier, get_local_rank, get_world_size

from cram_composer.config.schema.data import DataConfig
from cram_composer.config.units import parse_duration
from cram_composer.data.loading.block_dataset import BlockDataset
from cram_composer.data.loading.block_order import BlockOrder
from cram_composer.data.loading.mixture import SelectedStream, select_streams
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.data.loading.shard_stream import ShardStream
from cram_composer.data.loading.shared_memory import remove_stale_shared_memory
from cram_composer.data.loading.stream import RowStream
from cram_composer.data.manifest import Manifest
from cram_composer.errors import CramError
from cram_composer.storage.files import lock_folder

_NAME_TRIES = 10
_NAME_TRY_SECONDS = 0.05
_REUSED_TRIES = 20
_REUSED_TRY_SECONDS = 0.5


def open_block_dataset(
    data: PreparedDataset,
    streams: Sequence[SelectedStream],
    *,
    shuffle: bool = False,
    seed: int = 0,
    cache_limit: int | None = None,
) -> BlockDataset:
    """Open the blocks of some splits of a data set. Collective. Raises CramError."""
    rows = [_block_rows(data, stream.split) for stream in streams]
    block_rows = (
        None
        if any(counts is None for counts in rows)
        else np.concatenate([counts for counts in rows if counts is not None])
    )
    limit = cache_limit if data.remote is not None else None

    def open_new() -> BlockDataset:
        # New streams for each attempt, because opening a data set changes their weights.
        new_streams = [_shard_stream(data, stream) for stream in streams]
        return BlockDataset(
            new_streams,
            block_rows,
            row_length=data.manifest["sequence_length"],
            vocab_size=data.manifest["vocab_size"],
            shuffle=shuffle,
            seed=seed,
            cache_limit=limit,
        )

    with _opening_lock():
        return _open_with_retry(data, open_new)


@contextmanager
def _opening_lock() -> Iterator[None]:
    """Let one run per user open a data set at a time: concurrent runs take each other's shared memory names."""
    lock = FileLock(lock_folder() / "opening.lock")
    with lock if get_local_rank() == 0 else nullcontext():
        barrier()
        yield
        barrier()


def _open_with_retry(data: PreparedDataset, open_new: Callable[[], BlockDataset]) -> BlockDataset:
    """Open a data set; wait for the processes of a killed run to end, which takes seconds."""
    tries = 0
    while True:
        try:
            return _retry_name_collisions(open_new)
        except ValueError as error:
            if "Reused local directory" not in str(error):
                reason = str(error).splitlines()[0]
                too_small = "cache" in reason.lower()
                where = "data.cache_limit: too small" if too_small else data.root
                raise CramError(f"{where}: {reason}") from error
            if tries == _REUSED_TRIES:
                raise CramError(
                    f"{data.root}: another run uses this folder as its cache; set data.local to a different folder"
                ) from error
        if tries > 0:
            time.sleep(_REUSED_TRY_SECONDS)
        tries += 1
        gc.collect()  # frees unused data sets of this process
        remove_stale_shared_memory()


def _retry_name_collisions(open_new: Callable[[], BlockDataset]) -> BlockDataset:
    """Open a data set, retrying if another process takes the shared memory name that Streaming found free."""
    tries = _NAME_TRIES if get_world_size() == 1 else 1  # ranks that have agreed on a name cannot change it
    for _ in range(tries - 1):
        try:
            return open_new()
        except (FileExistsError, ValueError) as error:
            # The other process may not have given its new block a size yet.
            if isinstance(error, ValueError) and "mmap an empty file" not in str(error):
                raise
            time.sleep(_NAME_TRY_SECONDS)
            remove_stale_shared_memory()  # a killed process may have left some names
    return open_new()


def _shard_stream(data: PreparedDataset, stream: SelectedStream) -> ShardStream:
    weight = {name: value for name, value in asdict(stream).items() if name != "split" and value is not None}
    return ShardStream(
        str(data.root), stream.split, remote=data.remote, mirror=data.mirror, deadline=data.deadline, **weight
    )


def _block_rows(data: PreparedDataset, split: str) -> NDArray[np.int64] | None:
    manifest = data.manifest
    if split not in manifest["streams"]:
        return None  # the last blocks of a validation split may be shorter
    counts, full = manifest["splits"][split], manifest["block_rows"]
    if counts["blocks"] == 1:
        return np.array([counts["rows"]])
    return np.full(counts["blocks"], full)


def read_rows(blocks: BlockDataset, limit: int) -> NDArray:
    """Return the first `limit` rows in stored order, [<=limit, sequence_length]."""
    parts: list[NDArray] = []
    count = 0
    for index in range(blocks.num_samples):
        if count >= limit:
            break
        parts.append(blocks[index])
        count += len(parts[-1])
    return np.concatenate(parts)[:limit]


def open_held_out(data: PreparedDataset, split: str, limit: int, reserved: int = 0) -> tuple[NDArray, int]:
    """Return the first `limit` rows of a held-out split and the bytes they take in a remote data set's cache.

    Collective; `reserved` bytes of the cache are already in use.
    """
    free = None if data.cache_limit is None else data.cache_limit - reserved
    blocks = open_block_dataset(data, [SelectedStream(split)], cache_limit=free)
    return read_rows(blocks, limit), blocks.cache_usage


def open_train(
    data: PreparedDataset, config: DataConfig, *, seed: int, rank: int = 0, world_size: int = 1, reserved: int = 0
) -> RowStream:
    """Open the training rows from the beginning. Collective; `reserved` bytes of the cache are already in use."""
    streams = select_streams(config, data.manifest)
    limit = None if data.cache_limit is None else data.cache_limit - reserved
    blocks = open_block_dataset(data, streams, shuffle=is_shuffled(config, data.manifest), seed=seed, cache_limit=limit)
    assert blocks.block_rows is not None
    separate = range(len(streams)) if config.curriculum else [None]
    return RowStream(
        blocks,
        [BlockOrder(lambda epoch, i=i: blocks.epoch_order(epoch, i), blocks.block_rows) for i in separate],  # type: ignore[misc]
        rank=rank,
        world_size=world_size,
        num_workers=config.num_workers,
        timeout=parse_duration(config.timeout),
        prefetch=config.prefetch,
    )


def is_shuffled(config: DataConfig, manifest: Manifest) -> bool:
    """Return True if `data.order` selects random order or, by default, if the build did not sort the rows."""
    return manifest["ordering"] == "random" if config.order == "auto" else config.order == "shuffled"
