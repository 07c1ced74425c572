"""From rows to shards, as tasks over partitions: rows are dealt to buckets, and each partition writes some buckets.

However many partitions there are, the rows of a stream end up in one global order: random, or that of their keys.
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
    Keys,
    RowFile,
    blocks,
    borders,
    buckets_needed,
    deal_at_random,
    deal_by_key,
    gather,
    sample_keys,
)
from cram_composer.data.pipeline.shard_writer import Uploads, write_shards
from cram_composer.data.pipeline.text import SPLITS
from cram_composer.data.pipeline.tokenize_rows import open_tokenizer, rows_path
from cram_composer.data.pipeline.tokenizer.tokenizer import BuiltTokenizer
from cram_composer.data.pipeline.workspace import Work
from cram_composer.storage.client import Storage, is_remote

_BLOCKS_A_WRITER = 32


def sample(work: Work, partition: int, progress: bool) -> None:
    """Choose keys of this partition's rows, from which the ranges of the buckets are made."""
    tokenizer = open_tokenizer(work)
    for number, split in enumerate(work.streams):
        file = _rows(work, split, partition, tokenizer)
        keys = sample_keys(file, _keys(work, split, tokenizer), _seed(work, number, "key", partition))
        np.save(work.folder("samples") / f"{split}.{partition:05d}.npy", keys)


def deal(work: Work, partition: int, progress: bool) -> None:
    """Deal this partition's rows to the buckets of all partitions."""
    tokenizer = open_tokenizer(work)
    ordered = work.config.ordering in ORDERINGS
    for number, split in enumerate(work.splits):
        folder, name = work.folder("dealt", split), f"{partition:05d}"
        for left_over in folder.glob(f"*.{name}*"):  # of a task that was interrupted
            left_over.unlink()
        file = _rows(work, split, partition, tokenizer)
        buckets = _buckets(work, split, tokenizer) * writers(work, split)
        if ordered and split != SPLITS[1]:
            paths = sorted(work.folder("samples").glob(f"{split}.*.npy"))
            limits = borders(np.concatenate([np.load(path) for path in paths]), buckets)
            seed = _seed(work, number, "key", partition)
            deal_by_key(file, _keys(work, split, tokenizer), limits, folder, name, seed)
        else:
            deal_at_random(file, folder, name, buckets, _seed(work, number, "deal", partition))


def write(work: Work, partition: int, progress: bool) -> dict[str, Any]:
    """Write this partition's buckets of every split as shards in OUT/SPLIT/PARTITION; returns what was written.

    Where `output` is in object storage, the shards go there.
    """
    output = work.config.output
    if not is_remote(output):
        return _write(work, partition, progress, None)
    log = work.folder("uploaded") / f"{partition:05d}.jsonl"
    with Uploads(Storage(output), work.out, log) as uploads:
        return _write(work, partition, progress, uploads)


def _write(work: Work, partition: int, progress: bool, uploads: Uploads | None) -> dict[str, Any]:
    tokenizer = open_tokenizer(work)
    facts = {}
    for number, split in enumerate(work.splits):
        rows = _gathered(work, partition, number, tokenizer)
        arrays = _blocks(work, split, rows, total_rows(work, split))
        folder = work.out / split / f"{partition:05d}"
        for left_over in folder.glob("*"):  # of a task that was interrupted
            left_over.unlink()
        row_bytes = work.config.packing.sequence_length * tokenizer.dtype.itemsize
        share = total_rows(work, split) // writers(work, split) * row_bytes
        with Progress(f"{split} shards", share, progress) as bar:

            def watched(arrays: Iterator[NDArray] = arrays, bar: Progress = bar) -> Iterator[NDArray]:
                for block in arrays:
                    yield block
                    bar.advance(block.nbytes, block.size)

            written = write_shards(
                folder, watched(), tokenizer.dtype, tokenizer.vocab_size, work.config.compression, uploads
            )
        facts[split] = {
            "blocks": written.blocks,
            "rows": written.rows,
            "bytes": written.bytes,
        }
        work.save_counts("write", split, partition, written.counts)
    return facts


def _gathered(work: Work, partition: int, number: int, tokenizer: BuiltTokenizer) -> Iterator[NDArray]:
    split, config = work.splits[number], work.config
    length, each = config.packing.sequence_length, _buckets(work, split, tokenizer)
    seed = _seed(work, number, "order", partition)
    names = [f"{p:05d}" for p in range(config.partitions)]
    mine = range(partition * each, (partition + 1) * each) if partition < writers(work, split) else range(0)
    return gather(work.folder("dealt", split), names, mine, length, tokenizer.dtype, seed)


def _blocks(work: Work, split: str, rows: Iterator[NDArray], total_rows: int) -> Iterator[NDArray]:
    """Blocks of rows; those of train streams are all full, but for one that is shorter because there is no more."""
    size = work.config.packing.block_rows
    only_whole = split != SPLITS[1] and total_rows >= size
    return (block for block in blocks(rows, size) if len(block) == size or not only_whole)


def total_rows(work: Work, split: str) -> int:
    """Rows of a split that all partitions have packed."""
    return sum(result[split]["rows"] for result in work.results("encode"))


def writers(work: Work, split: str) -> int:
    """Partitions that write a split: not so many that what fills no block of theirs would be missed."""
    fewest_rows = _BLOCKS_A_WRITER * work.config.packing.block_rows
    return max(min(total_rows(work, split) // fewest_rows, work.config.partitions), 1)


def _buckets(work: Work, split: str, tokenizer: BuiltTokenizer) -> int:
    """Buckets of each partition that writes."""
    config = work.config
    row_bytes = config.packing.sequence_length * tokenizer.dtype.itemsize
    memory = config.shuffle_memory_mib << 20
    return buckets_needed(total_rows(work, split), row_bytes, memory, writers(work, split))


def _rows_path(work: Work, split: str, partition: int) -> Path:
    return rows_path(work.root / "rows", split, partition)


def _rows(work: Work, split: str, partition: int, tokenizer: BuiltTokenizer) -> RowFile:
    return RowFile(_rows_path(work, split, partition), work.config.packing.sequence_length, tokenizer.dtype)


def _keys(work: Work, split: str, tokenizer: BuiltTokenizer) -> Keys:
    special = tokenizer.special_tokens
    facts = RowFacts(
        sep_id=special["sep"],
        pad_id=special["pad"],
        sentence_end_ids=sentence_end_ids(tokenizer.backend),
        counts=work.counts("encode", split),
    )
    ordering = ORDERINGS[work.config.ordering]
    return lambda rows: ordering(rows, facts)


def _seed(work: Work, split: int, use: str, partition: int) -> list[int]:
    return [work.config.seed, split, ("deal", "order", "key").index(use), partition]
