"""Stages that compare documents, as tasks over partitions with bounded memory.

store_documents: write a partition's documents to a file, and keys of each document to buckets on disk.
find_duplicates: find documents that share a key with an earlier one, in this partition's buckets.
write_anchors: write keys of anchors in the remaining documents to buckets.
find_repeats: find anchors that share a key with an earlier one, in this partition's buckets.
remaining_chunks: yield a partition's chunks without duplicates and repeated spans.

Documents are ordered by partition and then by position; "earlier" refers to this order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.config.schema.data_build import ExactDuplicatesConfig, StagesConfig
from cram_composer.data.pipeline.document_store import Chunk, DocumentStore, DocumentWriter
from cram_composer.data.pipeline.ingest import DUPLICATE_STAGES, PartitionReader, StageStatistics, example_priority
from cram_composer.data.pipeline.progress import Progress
from cram_composer.data.pipeline.stages.buckets import (
    BucketWriter,
    divide_into_shares,
    earlier_pairs,
    find_later_owners,
)
from cram_composer.data.pipeline.stages.duplicates import band_keys, document_key
from cram_composer.data.pipeline.stages.examples import show_removed_span
from cram_composer.data.pipeline.stages.repeats import PartitionText, find_anchors, remove_spans, repeated_spans
from cram_composer.data.pipeline.workspace import Workspace

_PARTITION_BITS = 40  # a global index is (partition << 40 | chunk number or byte)
_RANGE_BITS = 24  # repeats are stored by ranges of 16 MiB of a partition's text
_BUCKET_BYTES = 64 << 20
_BUFFER_BYTES = 32 << 20
_MAX_OPEN_STORES = 32  # stores of other partitions; each takes two of the process's file descriptors
_KEY_BATCH = 1024  # documents whose keys are written together

# Bytes of keys per byte of text: a key takes 16 bytes; documents of 500 bytes and more have 14 bands by default, and
# about one position in thirteen is an anchor.
_KEYS_PER_BYTE = {"exact_duplicates": 0.04, "near_duplicates": 0.5, "repeated_spans": 1.3}


def bucket_count(text_bytes: int, stage: str, partitions: int) -> int:
    """Return the number of buckets for the keys of this much text: each fits in memory, each partition has some."""
    return max(int(text_bytes * _KEYS_PER_BYTE[stage]) // _BUCKET_BYTES + 1, partitions)


def store_documents(work: Workspace, partition: int, progress: bool) -> tuple[dict[str, Any], StageStatistics]:
    """Write the partition's documents to a file and their keys to buckets."""
    config = work.config
    reader = PartitionReader(config, partition)
    writers = _key_writers(work, partition)
    with DocumentWriter(work.folder("texts"), partition) as out:
        batch: list[tuple[int, str]] = []
        for chunk in reader.chunks("text", progress):
            if chunk.text is not None:
                batch.append((_global_index(partition, out.chunks), chunk.text))
            out.add(chunk)
            if len(batch) == _KEY_BATCH:
                _write_keys(batch, writers)
                batch = []
        _write_keys(batch, writers)
    for _, writer in writers:
        writer.close()
    facts = {"bytes": out.bytes, "chunks": out.chunks, "sources": [asdict(counts) for counts in reader.source_counts]}
    return facts, reader.statistics


_KeyFunction = Callable[[str], NDArray]


def _key_writers(work: Workspace, partition: int) -> list[tuple[_KeyFunction, BucketWriter]]:
    exact, near = work.config.stages.exact_duplicates, work.config.stages.near_duplicates
    found: list[tuple[_KeyFunction, BucketWriter]] = []
    if exact is not None:
        found.append((partial(_document_keys, config=exact), _bucket_writer(work, "exact_duplicates", partition)))
    if near is not None:
        keys = partial(band_keys, config=near, seed=work.config.seed)
        found.append((keys, _bucket_writer(work, "near_duplicates", partition)))
    return found


def _document_keys(text: str, config: ExactDuplicatesConfig) -> NDArray:
    return np.array([document_key(text, config)], np.uint64)


def _write_keys(batch: list[tuple[int, str]], writers: list[tuple[_KeyFunction, BucketWriter]]) -> None:
    if batch:
        owners = np.array([owner for owner, _ in batch], np.uint64)
        for keys_of, writer in writers:
            keys = [keys_of(text) for _, text in batch]
            writer.add(np.concatenate(keys), np.repeat(owners, [len(k) for k in keys]))


def find_duplicates(work: Workspace, partition: int, progress: bool) -> None:
    """Find the documents that duplicate an earlier one, in this partition's buckets."""
    folder = work.folder("duplicates")
    for stage in _duplicate_stages(work.config.stages):
        for bucket in _partition_buckets(work, stage, partition):
            files = _bucket_files(work, stage, bucket)
            found = [find_later_owners(files, share) for share in divide_into_shares(files, 2 * _BUCKET_BYTES)]
            np.save(folder / f"{stage}.{bucket:05d}.npy", np.unique(np.concatenate(found)))


def write_anchors(work: Workspace, partition: int, progress: bool) -> None:
    """Write the keys of anchors in the remaining documents to buckets."""
    stage = work.config.stages.repeated_spans
    assert stage is not None
    writer = _bucket_writer(work, "repeated_spans", partition)
    store = DocumentStore(work.folder("texts"), partition)
    is_duplicate = _any_duplicate_mask(work, partition, len(store))
    with Progress(f"repeated spans, partition {partition}", len(store.text), progress) as bar:
        for number in range(len(store)):
            start, end = store.byte_range(number)
            if not is_duplicate[number] and end - start >= stage.length:
                keys, offsets = find_anchors(store.read_bytes(number), stage.length)
                writer.add(keys, offsets.astype(np.uint64) + np.uint64(_global_index(partition, start)))
            store.release_before(end)
            bar.advance(end - start)
    writer.close()


def find_repeats(work: Workspace, partition: int, progress: bool) -> None:
    """Find the anchors that share a key with an earlier one, in this partition's buckets."""
    stage = work.config.stages.repeated_spans
    assert stage is not None
    folder = work.folder("repeats")
    for leftover in folder.glob(f"*/{partition:05d}"):  # of an interrupted task
        leftover.unlink()
    for bucket in _partition_buckets(work, "repeated_spans", partition):
        files = _bucket_files(work, "repeated_spans", bucket)
        # An anchor can have several earlier copies, so the pairs take more memory than the keys.
        for share in divide_into_shares(files, _BUCKET_BYTES // 4):
            later, earlier = earlier_pairs(files, apart=stage.length, share=share)
            both = np.stack([later, earlier], axis=1)
            ranges = later >> np.uint64(_RANGE_BITS)
            for part in np.split(both, np.flatnonzero(np.diff(ranges)) + 1):
                if len(part):
                    range_folder = work.folder("repeats", f"{int(part[0, 0]) >> _RANGE_BITS:010x}")
                    with open(range_folder / f"{partition:05d}", "ab") as out:
                        part.tofile(out)


def remaining_chunks(work: Workspace, partition: int, statistics: StageStatistics, progress: bool) -> Iterator[Chunk]:
    """Yield the partition's chunks without the text of duplicates and without repeated spans."""
    stages = work.config.stages
    store = DocumentStore(work.folder("texts"), partition)
    duplicate_masks = {
        stage: _duplicate_mask(work, stage, partition, len(store)) for stage in _duplicate_stages(stages)
    }
    spans = (
        None
        if stages.repeated_spans is None
        else _RepeatedSpanRemover(work, partition, store, stages.repeated_spans.length)
    )
    with Progress("tokens", len(store.text), progress) as bar:
        for number in range(len(store)):
            text = None
            if not store.is_dropped(number):
                text = _drop_duplicates(store.read_bytes(number).decode(), number, duplicate_masks, statistics)
            if text is not None and spans is not None:
                text = spans.remove(number, text, statistics)
            yield store.with_text(number, text)
            start, end = store.byte_range(number)
            if store.release_before(end) and spans is not None:
                spans.release()
            bar.advance(end - start)


def _drop_duplicates(
    text: str, number: int, duplicate_masks: dict[str, NDArray], statistics: StageStatistics
) -> str | None:
    for stage, is_duplicate in duplicate_masks.items():
        if is_duplicate[number]:
            statistics.record_drop(stage, text, "like-an-earlier-one")
            return None
        statistics.record(stage, text, text, None)
    return text


class _RepeatedSpanRemover:
    """Removes the spans of a partition's chunks that have an earlier copy."""

    def __init__(self, work: Workspace, partition: int, store: DocumentStore, length: int) -> None:
        self._folder = work.folder("repeats")
        self._partition = partition
        self._folder_of_stores = work.folder("texts")
        self._stores = {partition: store}
        self._own = store
        self._length = length
        self._ranges: dict[int, NDArray] = {}

    def remove(self, number: int, text: str, statistics: StageStatistics) -> str | None:
        """Return the text without its repeated spans; None if nothing remains."""
        start, end = self._own.byte_range(number)
        found = self._pairs_in_range(_global_index(self._partition, start), _global_index(self._partition, end))
        data = self._own.read_bytes(number)
        position = _global_index(self._partition, start)
        offsets = (found[:, 0] - np.uint64(position)).astype(np.int64)
        spans = repeated_spans(data, offsets, found[:, 1], position, self._earlier_text, self._length)
        if not spans:
            statistics.record("repeated_spans", text, text, None)
            return text
        remaining = " ".join(remove_spans(data, spans).decode().split())
        if not remaining:
            statistics.record_drop("repeated_spans", text, "all-of-it")
            return None
        statistics.record("repeated_spans", text, remaining, "parts-of-it")
        first, after = spans[0]
        statistics.examples.offer(
            "repeated_spans", "parts-of-it", show_removed_span(data, first, after), example_priority(text)
        )
        return remaining

    def release(self) -> None:
        """Free the pages of the text that has been read."""
        for store in self._stores.values():
            store.release()

    def _earlier_text(self, partition: int) -> PartitionText:
        if partition not in self._stores:
            others = [number for number in self._stores if number != self._partition]
            if len(others) == _MAX_OPEN_STORES:
                del self._stores[others[0]]
            self._stores[partition] = DocumentStore(self._folder_of_stores, partition)
        store = self._stores[partition]
        return PartitionText(store.text, store.starts)

    def _pairs_in_range(self, first: int, after: int) -> NDArray:
        """Return pairs [n, 2] of (position, earlier position) for positions from `first` up to `after`, sorted."""
        wanted = range(first >> _RANGE_BITS, (max(after - 1, first) >> _RANGE_BITS) + 1)
        self._ranges = {r: self._ranges[r] if r in self._ranges else self._load_range(r) for r in wanted}
        parts = []
        for found in self._ranges.values():
            low, high = np.searchsorted(found[:, 0], np.array([first, after], np.uint64))
            parts.append(found[low:high])
        return np.concatenate(parts)

    def _load_range(self, number: int) -> NDArray:
        files = sorted(self._folder.glob(f"{number:010x}/*"))
        if not files:
            return np.zeros((0, 2), np.uint64)
        found = np.concatenate([np.fromfile(file, np.uint64).reshape(-1, 2) for file in files])
        return found[np.argsort(found[:, 0], kind="stable")]


def _global_index(partition: int, number: int) -> int:
    return partition << _PARTITION_BITS | number


def _duplicate_stages(config: StagesConfig) -> list[str]:
    return [stage for stage in DUPLICATE_STAGES if getattr(config, stage) is not None]


def _bucket_writer(work: Workspace, stage: str, partition: int) -> BucketWriter:
    return BucketWriter(work.folder("keys"), f"{stage}.{partition:05d}", _bucket_count(work, stage), _BUFFER_BYTES)


def _bucket_count(work: Workspace, stage: str) -> int:
    layout = work.result("layout")
    assert layout is not None
    return layout[stage]


def _partition_buckets(work: Workspace, stage: str, partition: int) -> range:
    return range(partition, _bucket_count(work, stage), work.config.partitions)


def _bucket_files(work: Workspace, stage: str, bucket: int) -> list[Path]:
    return [work.root / "keys" / f"{stage}.{p:05d}.{bucket:05d}" for p in range(work.config.partitions)]


def _duplicate_mask(work: Workspace, stage: str, partition: int, count: int) -> NDArray:
    """Return bool [count]: the chunks of a partition that duplicate an earlier one."""
    is_duplicate = np.zeros(count, bool)
    limits = np.array([_global_index(partition, 0), _global_index(partition + 1, 0)], np.uint64)
    for path in sorted(work.folder("duplicates").glob(f"{stage}.*.npy")):
        owners = np.load(path)
        low, high = np.searchsorted(owners, limits)
        is_duplicate[(owners[low:high] - limits[0]).astype(np.int64)] = True
    return is_duplicate


def _any_duplicate_mask(work: Workspace, partition: int, count: int) -> NDArray:
    is_duplicate = np.zeros(count, bool)
    for stage in _duplicate_stages(work.config.stages):
        is_duplicate |= _duplicate_mask(work, stage, partition, count)
    return is_duplicate
