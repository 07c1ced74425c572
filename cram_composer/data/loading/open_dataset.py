"""Opening a data set that `prepare` has made sure of: its rows as a stream or an array."""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from streaming.base.distributed import barrier, get_local_rank, get_world_size

from cram_composer.config.schema.data import DataConfig
from cram_composer.config.units import parse_duration
from cram_composer.data.loading.block_order import Order
from cram_composer.data.loading.mixture import StreamChoice, choose_streams
from cram_composer.data.loading.prepare import DataSet
from cram_composer.data.loading.shard_stream import ShardStream
from cram_composer.data.loading.shards import Blocks
from cram_composer.data.loading.stale_memory import remove_stale_memory
from cram_composer.data.loading.stream import RowStream
from cram_composer.data.manifest import Manifest
from cram_composer.errors import CramError

_NAME_TRIES = 10
_NAME_TRY_SECONDS = 0.05


def open_blocks(
    data: DataSet,
    streams: Sequence[StreamChoice],
    *,
    shuffle: bool = False,
    seed: int = 0,
    cache_limit: int | None = None,
) -> Blocks:
    """The blocks of some splits of a data set. Collective. Raises CramError, one line."""
    rows = [_block_rows(data, stream.split) for stream in streams]
    known = None if any(one is None for one in rows) else np.concatenate([one for one in rows if one is not None])
    limit = cache_limit if data.remote is not None else None

    def opened() -> Blocks:
        # Made anew each time: opening them derives their weights.
        made = [_shard_stream(data, stream) for stream in streams]
        return Blocks(made, known, shuffle=shuffle, seed=seed, cache_limit=limit)

    with _one_at_a_time():
        return _open(data, opened)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """One run of a user opens a data set at a time: those that do so at the same moment take each other's names."""
    lock = FileLock(Path(tempfile.gettempdir()) / f"cram-opening-{os.getuid()}.lock")
    with lock if get_local_rank() == 0 else nullcontext():
        barrier()
        yield
        barrier()


def _open(data: DataSet, opened: Callable[[], Blocks]) -> Blocks:
    try:
        return _with_a_name_of_its_own(opened)
    except ValueError as error:
        if "cache" in str(error).lower() and "Reused" not in str(error):
            raise CramError(f"data.cache_limit: too little: {str(error).splitlines()[0]}") from error
        if "Reused local directory" not in str(error):
            raise CramError(f"{data.root}: {str(error).splitlines()[0]}") from error
    gc.collect()  # a stream of this process that nobody uses any more
    remove_stale_memory()
    try:
        return _with_a_name_of_its_own(opened)
    except ValueError as error:
        raise CramError(
            f"{data.root}: another run uses this folder as its cache; give each its own data.local"
        ) from error


def _with_a_name_of_its_own(opened: Callable[[], Blocks]) -> Blocks:
    """Streaming looks for a free name of its shared memory, then takes it: any other user of it may come between."""
    tries = _NAME_TRIES if get_world_size() == 1 else 1  # ranks that have agreed on a name cannot be told of another
    for _ in range(tries - 1):
        try:
            return opened()
        except FileExistsError:
            time.sleep(_NAME_TRY_SECONDS)
            remove_stale_memory()  # some names of a killed process may be in the way
    return opened()


def _shard_stream(data: DataSet, stream: StreamChoice) -> ShardStream:
    weight = {name: value for name, value in asdict(stream).items() if name != "split" and value is not None}
    return ShardStream(
        str(data.root), stream.split, remote=data.remote, mirror=data.mirror, deadline=data.deadline, **weight
    )


def _block_rows(data: DataSet, split: str) -> NDArray[np.int64] | None:
    manifest = data.manifest
    if split not in manifest["streams"]:
        return None  # the last blocks of a validation split may be shorter
    counts, full = manifest["splits"][split], manifest["block_rows"]
    if counts["blocks"] == 1:
        return np.array([counts["rows"]])
    if counts["rows"] != counts["blocks"] * full:
        raise CramError(
            f"{data.root}: split {split} has {counts['rows']} rows, which are not {counts['blocks']} blocks of {full}; "
            "the data set is damaged, copy or build it again"
        )
    return np.full(counts["blocks"], full)


def read_rows(blocks: Blocks, limit: int) -> NDArray:
    """The first `limit` rows in stored order, [<=limit, sequence_length]."""
    parts: list[NDArray] = []
    count = 0
    for index in range(blocks.num_samples):
        if count >= limit:
            break
        parts.append(blocks[index])
        count += len(parts[-1])
    return np.concatenate(parts)[:limit]


def open_validation(data: DataSet, limit: int) -> tuple[NDArray, int]:
    """The first `limit` validation rows, and the bytes they take in the cache of a remote data set. Collective."""
    blocks = open_blocks(data, [StreamChoice("validation")], cache_limit=data.cache_limit)
    return read_rows(blocks, limit), blocks.cache_usage


def open_train(
    data: DataSet, config: DataConfig, *, seed: int, rank: int = 0, world_size: int = 1, reserved: int = 0
) -> RowStream:
    """The training rows from their beginning. Collective; `reserved` bytes of the cache are in use already."""
    streams = choose_streams(config, data.manifest)
    limit = None if data.cache_limit is None else data.cache_limit - reserved
    blocks = open_blocks(data, streams, shuffle=is_shuffled(config, data.manifest), seed=seed, cache_limit=limit)
    assert blocks.block_rows is not None
    separate = range(len(streams)) if config.curriculum else [None]
    return RowStream(
        blocks,
        [Order(lambda epoch, i=i: blocks.epoch_order(epoch, i), blocks.block_rows) for i in separate],  # type: ignore[misc]
        rank=rank,
        world_size=world_size,
        num_workers=config.num_workers,
        timeout=parse_duration(config.timeout),
        prefetch=config.prefetch,
    )


def is_shuffled(config: DataConfig, manifest: Manifest) -> bool:
    """Whether blocks are read in random order: unless the build put the rows in an order, or `data.order` says so."""
    return manifest["ordering"] == "random" if config.order == "auto" else config.order == "shuffled"
