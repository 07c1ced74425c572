"""From rows to shards, as tasks over partitions: distribute rows to buckets, then write each bucket as shards.

With any number of partitions, the rows of a stream end up in one global order: random, or sorted by key.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.data.pipeline.progress import Progress
from cram_composer.data.pipeline.rows.ordering import ORDERINGS, RowFacts, sentence_end_ids
from cram_composer.data.pipeline.rows.shuffle import (
    KeyFunction,
    RowFile,
    buckets_needed,
    distribute_at_random,
    distribute_by_key,
    group_into_blocks,
    range_limits,
    read_buckets,
    sample_keys,
)
from cram_composer.data.pipeline.shard_writer import UploadQueue, write_shards
from cram_composer.data.pipeline.tokenize_rows import open_tokenizer, rows_path
from cram_composer.data.pipeline.tokenizer.tokenizer import BuiltTokenizer
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.storage.client import Storage, is_remote

_MIN_BLOCKS_PER_WRITER = 32


def sample_sort_keys(work: Workspace, partition: int, progress: bool) -> None:
    """Sample sort keys of this partition's rows, from which the key ranges of buckets are chosen."""
    tokenizer = open_tokenizer(work)
    for number, split in enumerate(work.streams):
        file = _row_file(work, split, partition, tokenizer)
        keys = sample_keys(file, _ordering_keys(work, split, tokenizer), _seed(work, number, "key", partition))
        np.save(work.folder("samples") / f"{split}.{partition:05d}.npy", keys)


def distribute_rows(work: Workspace, partition: int, progress: bool) -> None:
    """Distribute this partition's rows to the buckets of all partitions."""
    tokenizer = open_tokenizer(work)
    ordered = work.config.ordering in ORDERINGS
    for number, split in enumerate(work.splits):
        folder, name = work.folder("dealt", split), f"{partition:05d}"
        for leftover in folder.glob(f"*.{name}*"):  # of an interrupted task
            leftover.unlink()
        file = _row_file(work, split, partition, tokenizer)
        buckets = _buckets_per_writer(work, split, tokenizer) * writer_count(work, split)
        if ordered and split in work.streams:
            paths = sorted(work.folder("samples").glob(f"{split}.*.npy"))
            limits = range_limits(np.concatenate([np.load(path) for path in paths]), buckets)
            seed = _seed(work, number, "key", partition)
            distribute_by_key(file, _ordering_keys(work, split, tokenizer), limits, folder, name, seed)
        else:
            distribute_at_random(file, folder, name, buckets, _seed(work, number, "deal", partition))


def write_partition(work: Workspace, partition: int, progress: bool) -> dict[str, Any]:
    """Write this partition's buckets of every split as shards in OUT/SPLIT/PARTITION, or to a remote `output`.

    Returns:
        blocks, rows and bytes by split.
    """
    output = work.config.output
    if not is_remote(output):
        return _write_splits(work, partition, progress, None)
    log = work.folder("uploaded") / f"{partition:05d}.jsonl"
    with UploadQueue(Storage(output), work.out, log) as uploads:
        return _write_splits(work, partition, progress, uploads)


def _write_splits(work: Workspace, partition: int, progress: bool, uploads: UploadQueue | None) -> dict[str, Any]:
    tokenizer = open_tokenizer(work)
    facts = {}
    for number, split in enumerate(work.splits):
        rows = _ordered_rows(work, partition, number, tokenizer)
        arrays = _full_blocks(work, split, rows, total_rows(work, split))
        folder = work.out / split / f"{partition:05d}"
        for leftover in folder.glob("*"):  # of an interrupted task
            leftover.unlink()
        row_bytes = work.config.packing.sequence_length * tokenizer.dtype.itemsize
        share = total_rows(work, split) // writer_count(work, split) * row_bytes
        with Progress(f"{split} shards", share, progress) as bar:

            def report_progress(arrays: Iterator[NDArray] = arrays, bar: Progress = bar) -> Iterator[NDArray]:
                for block in arrays:
                    yield block
                    bar.advance(block.nbytes, block.size)

            written = write_shards(
                folder, report_progress(), tokenizer.dtype, tokenizer.vocab_size, work.config.compression, uploads
            )
        facts[split] = {
            "blocks": written.blocks,
            "rows": written.rows,
            "bytes": written.bytes,
        }
        work.save_token_counts("write", split, partition, written.counts)
    return facts


def _ordered_rows(work: Workspace, partition: int, number: int, tokenizer: BuiltTokenizer) -> Iterator[NDArray]:
    split, config = work.splits[number], work.config
    length, each = config.packing.sequence_length, _buckets_per_writer(work, split, tokenizer)
    seed = _seed(work, number, "order", partition)
    names = [f"{p:05d}" for p in range(config.partitions)]
    mine = range(partition * each, (partition + 1) * each) if partition < writer_count(work, split) else range(0)
    return read_buckets(work.folder("dealt", split), names, mine, length, tokenizer.dtype, seed)


def _full_blocks(work: Workspace, split: str, rows: Iterator[NDArray], total_rows: int) -> Iterator[NDArray]:
    """Group rows into blocks; drop a short last block of a train stream unless it is the only block."""
    size = work.config.packing.block_rows
    only_full = split in work.streams and total_rows >= size
    return (block for block in group_into_blocks(rows, size) if len(block) == size or not only_full)


def total_rows(work: Workspace, split: str) -> int:
    """Return the number of rows of a split over all partitions."""
    return sum(result[split]["rows"] for result in work.results("encode"))


def writer_count(work: Workspace, split: str) -> int:
    """Return the number of partitions that write a split: few enough that incomplete blocks hardly matter."""
    fewest_rows = _MIN_BLOCKS_PER_WRITER * work.config.packing.block_rows
    return max(min(total_rows(work, split) // fewest_rows, work.config.partitions), 1)


def _buckets_per_writer(work: Workspace, split: str, tokenizer: BuiltTokenizer) -> int:
    """Return the number of buckets of each partition that writes."""
    config = work.config
    row_bytes = config.packing.sequence_length * tokenizer.dtype.itemsize
    memory = config.shuffle_memory_mib << 20
    return buckets_needed(total_rows(work, split), row_bytes, memory, writer_count(work, split))


def _rows_path(work: Workspace, split: str, partition: int) -> Path:
    return rows_path(work.root / "rows", split, partition)


def _row_file(work: Workspace, split: str, partition: int, tokenizer: BuiltTokenizer) -> RowFile:
    return RowFile(_rows_path(work, split, partition), work.config.packing.sequence_length, tokenizer.dtype)


def _ordering_keys(work: Workspace, split: str, tokenizer: BuiltTokenizer) -> KeyFunction:
    special = tokenizer.special_tokens
    facts = RowFacts(
        sep_id=special["sep"],
        pad_id=special["pad"],
        sentence_end_ids=sentence_end_ids(tokenizer.backend),
        counts=work.token_counts("encode", split),
    )
    ordering = ORDERINGS[work.config.ordering]
    return lambda rows: ordering(rows, facts)


def _seed(work: Workspace, split: int, use: str, partition: int) -> list[int]:
    return [work.config.seed, split, ("deal", "order", "key").index(use), partition]
