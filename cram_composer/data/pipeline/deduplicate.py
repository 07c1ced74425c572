"""The stages that compare documents with each other, as tasks over partitions, in memory that does not grow with them.

read: a partition's documents go to a file, and keys of each document to buckets on disk.
duplicates: each partition takes some of the buckets and finds the documents that share a key with an earlier one.
anchors: keys of places in the documents that are left go to buckets.
repeats: each partition takes some of those buckets and finds the places that share a key with an earlier one.
survivors: what is left of a partition's documents.

The order of documents, which decides what is earlier, is by partition and then by place in it.
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
from cram_composer.data.pipeline.document_store import Chunk, Texts, TextWriter
from cram_composer.data.pipeline.ingest import DUPLICATE_STAGES, Judgements, Reader, example_key
from cram_composer.data.pipeline.progress import Progress
from cram_composer.data.pipeline.stages.buckets import BucketWriter, later_owners, pairs, shares
from cram_composer.data.pipeline.stages.duplicates import band_keys, document_key
from cram_composer.data.pipeline.stages.examples import removed_span
from cram_composer.data.pipeline.stages.repeats import EarlierText, anchors, cut, repeated_spans
from cram_composer.data.pipeline.workspace import Work

_PARTITION_BITS = 40  # an owner or a position is (partition << 40 | number or byte)
_RANGE_BITS = 24  # places that repeat are kept by ranges of 16 MiB of a partition's text
_BUCKET_BYTES = 64 << 20
_BUFFER_BYTES = 32 << 20
_TEXTS_OPEN = 32  # texts of other partitions; each takes two of the files that a process may hold open
_GROUP = 1024  # documents whose keys are handed on together

# Bytes of keys for a byte of text: 16 each; documents of 500 bytes and more have 14 bands by default, and a place in
# about thirteen is an anchor.
_KEYS_PER_BYTE = {"exact_duplicates": 0.04, "near_duplicates": 0.5, "repeated_spans": 1.3}


def bucket_count(text_bytes: int, stage: str, partitions: int) -> int:
    """Buckets for the keys of so much text: small enough to be sorted in memory, and some for every partition."""
    return max(int(text_bytes * _KEYS_PER_BYTE[stage]) // _BUCKET_BYTES + 1, partitions)


def read(work: Work, partition: int, progress: bool) -> tuple[dict[str, Any], Judgements]:
    """Write the partition's documents to a file and their keys to buckets."""
    config = work.config
    reader = Reader(config, partition)
    writers = _key_writers(work, partition)
    with TextWriter(work.folder("texts"), partition) as out:
        group: list[tuple[int, str]] = []
        for chunk in reader.chunks("reading", progress):
            if chunk.text is not None:
                group.append((_owner(partition, out.chunks), chunk.text))
            out.add(chunk)
            if len(group) == _GROUP:
                _write_keys(group, writers)
                group = []
        _write_keys(group, writers)
    for _, writer in writers:
        writer.close()
    facts = {"bytes": out.bytes, "chunks": out.chunks, "sources": [asdict(counts) for counts in reader.sources]}
    return facts, reader.judgements


_Keys = Callable[[str], NDArray]


def _key_writers(work: Work, partition: int) -> list[tuple[_Keys, BucketWriter]]:
    exact, near = work.config.stages.exact_duplicates, work.config.stages.near_duplicates
    found: list[tuple[_Keys, BucketWriter]] = []
    if exact is not None:
        found.append((partial(_document_keys, config=exact), _writer(work, "exact_duplicates", partition)))
    if near is not None:
        keys = partial(band_keys, config=near, seed=work.config.seed)
        found.append((keys, _writer(work, "near_duplicates", partition)))
    return found


def _document_keys(text: str, config: ExactDuplicatesConfig) -> NDArray:
    return np.array([document_key(text, config)], np.uint64)


def _write_keys(group: list[tuple[int, str]], writers: list[tuple[_Keys, BucketWriter]]) -> None:
    if group:
        owners = np.array([owner for owner, _ in group], np.uint64)
        for keys_of, writer in writers:
            keys = [keys_of(text) for _, text in group]
            writer.add(np.concatenate(keys), np.repeat(owners, [len(k) for k in keys]))


def duplicates(work: Work, partition: int, progress: bool) -> None:
    """Find, in this partition's share of the buckets, the documents that are like an earlier one."""
    folder = work.folder("duplicates")
    for stage in _duplicate_stages(work.config.stages):
        for bucket in _my_buckets(work, stage, partition):
            files = _bucket_files(work, stage, bucket)
            found = [later_owners(files, share) for share in shares(files, 2 * _BUCKET_BYTES)]
            np.save(folder / f"{stage}.{bucket:05d}.npy", np.unique(np.concatenate(found)))


def anchor(work: Work, partition: int, progress: bool) -> None:
    """Write the keys of places in the documents that are left to buckets."""
    stage = work.config.stages.repeated_spans
    assert stage is not None
    writer = _writer(work, "repeated_spans", partition)
    texts = Texts(work.folder("texts"), partition)
    gone = _gone(work, partition, len(texts))
    with Progress(f"repeated spans, partition {partition}", len(texts.text), progress) as bar:
        for number in range(len(texts)):
            start, end = texts.bounds(number)
            if not gone[number] and end - start >= stage.length:
                keys, offsets = anchors(texts.bytes_of(number), stage.length)
                writer.add(keys, offsets.astype(np.uint64) + np.uint64(_owner(partition, start)))
            texts.passed(end)
            bar.advance(end - start)
    writer.close()


def repeats(work: Work, partition: int, progress: bool) -> None:
    """Find, in this partition's share of the buckets, the places that share a key with an earlier one."""
    stage = work.config.stages.repeated_spans
    assert stage is not None
    folder = work.folder("repeats")
    for left_over in folder.glob(f"*/{partition:05d}"):  # of a task that was interrupted
        left_over.unlink()
    for bucket in _my_buckets(work, "repeated_spans", partition):
        files = _bucket_files(work, "repeated_spans", bucket)
        # A place may come with several others: what is found takes more room than what it is found in.
        for share in shares(files, _BUCKET_BYTES // 4):
            later, earlier = pairs(files, apart=stage.length, share=share)
            both = np.stack([later, earlier], axis=1)
            ranges = later >> np.uint64(_RANGE_BITS)
            for part in np.split(both, np.flatnonzero(np.diff(ranges)) + 1):
                if len(part):
                    place = work.folder("repeats", f"{int(part[0, 0]) >> _RANGE_BITS:010x}")
                    with open(place / f"{partition:05d}", "ab") as out:
                        part.tofile(out)


def survivors(work: Work, partition: int, judgements: Judgements, progress: bool) -> Iterator[Chunk]:
    """The partition's chunks, without the text of those that are gone and without spans that repeat."""
    stages = work.config.stages
    texts = Texts(work.folder("texts"), partition)
    like_earlier = {stage: _marked(work, stage, partition, len(texts)) for stage in _duplicate_stages(stages)}
    spans = None if stages.repeated_spans is None else _Spans(work, partition, texts, stages.repeated_spans.length)
    with Progress("tokens", len(texts.text), progress) as bar:
        for number in range(len(texts)):
            text = None
            if not texts.dropped(number):
                text = _judge(texts.bytes_of(number).decode(), number, like_earlier, judgements)
            if text is not None and spans is not None:
                text = spans.remove(number, text, judgements)
            yield texts.chunk(number, text)
            start, end = texts.bounds(number)
            if texts.passed(end) and spans is not None:
                spans.release()
            bar.advance(end - start)


def _judge(text: str, number: int, like_earlier: dict[str, NDArray], judgements: Judgements) -> str | None:
    for stage, marked in like_earlier.items():
        if marked[number]:
            judgements.drop(stage, text, "like-an-earlier-one")
            return None
        judgements.record(stage, text, text, None)
    return text


class _Spans:
    """The spans of a partition's chunks that have an earlier copy."""

    def __init__(self, work: Work, partition: int, texts: Texts, length: int) -> None:
        self._folder = work.folder("repeats")
        self._partition = partition
        self._texts = work.folder("texts")
        self._opened = {partition: texts}
        self._own = texts
        self._length = length
        self._ranges: dict[int, NDArray] = {}

    def remove(self, number: int, text: str, judgements: Judgements) -> str | None:
        """The text without its repeated spans; None if nothing is left of it."""
        start, end = self._own.bounds(number)
        found = self._between(_owner(self._partition, start), _owner(self._partition, end))
        data = self._own.bytes_of(number)
        position = _owner(self._partition, start)
        offsets = (found[:, 0] - np.uint64(position)).astype(np.int64)
        spans = repeated_spans(data, offsets, found[:, 1], position, self._earlier, self._length)
        if not spans:
            judgements.record("repeated_spans", text, text, None)
            return text
        left = " ".join(cut(data, spans).decode().split())
        if not left:
            judgements.drop("repeated_spans", text, "all-of-it")
            return None
        judgements.record("repeated_spans", text, left, "parts-of-it")
        first, after = spans[0]
        judgements.examples.offer("repeated_spans", "parts-of-it", removed_span(data, first, after), example_key(text))
        return left

    def release(self) -> None:
        """Let go of the text that has been looked at."""
        for texts in self._opened.values():
            texts.release()

    def _earlier(self, partition: int) -> EarlierText:
        if partition not in self._opened:
            others = [number for number in self._opened if number != self._partition]
            if len(others) == _TEXTS_OPEN:
                del self._opened[others[0]]
            self._opened[partition] = Texts(self._texts, partition)
        texts = self._opened[partition]
        return EarlierText(texts.text, texts.starts)

    def _between(self, first: int, after: int) -> NDArray:
        """Pairs [n, 2] of (place, earlier place) for places from `first` up to `after`, sorted."""
        wanted = range(first >> _RANGE_BITS, (max(after - 1, first) >> _RANGE_BITS) + 1)
        self._ranges = {r: self._ranges[r] if r in self._ranges else self._load(r) for r in wanted}
        parts = []
        for found in self._ranges.values():
            low, high = np.searchsorted(found[:, 0], np.array([first, after], np.uint64))
            parts.append(found[low:high])
        return np.concatenate(parts)

    def _load(self, number: int) -> NDArray:
        files = sorted(self._folder.glob(f"{number:010x}/*"))
        if not files:
            return np.zeros((0, 2), np.uint64)
        found = np.concatenate([np.fromfile(file, np.uint64).reshape(-1, 2) for file in files])
        return found[np.argsort(found[:, 0], kind="stable")]


def _owner(partition: int, number: int) -> int:
    return partition << _PARTITION_BITS | number


def _duplicate_stages(config: StagesConfig) -> list[str]:
    return [stage for stage in DUPLICATE_STAGES if getattr(config, stage) is not None]


def _writer(work: Work, stage: str, partition: int) -> BucketWriter:
    return BucketWriter(work.folder("keys"), f"{stage}.{partition:05d}", _buckets(work, stage), _BUFFER_BYTES)


def _buckets(work: Work, stage: str) -> int:
    layout = work.result("layout")
    assert layout is not None
    return layout[stage]


def _my_buckets(work: Work, stage: str, partition: int) -> range:
    return range(partition, _buckets(work, stage), work.config.partitions)


def _bucket_files(work: Work, stage: str, bucket: int) -> list[Path]:
    return [work.root / "keys" / f"{stage}.{p:05d}.{bucket:05d}" for p in range(work.config.partitions)]


def _marked(work: Work, stage: str, partition: int, count: int) -> NDArray:
    """Bool [count]: which of a partition's chunks are like an earlier one."""
    marked = np.zeros(count, bool)
    limits = np.array([_owner(partition, 0), _owner(partition + 1, 0)], np.uint64)
    for path in sorted(work.folder("duplicates").glob(f"{stage}.*.npy")):
        owners = np.load(path)
        low, high = np.searchsorted(owners, limits)
        marked[(owners[low:high] - limits[0]).astype(np.int64)] = True
    return marked


def _gone(work: Work, partition: int, count: int) -> NDArray:
    gone = np.zeros(count, bool)
    for stage in _duplicate_stages(work.config.stages):
        gone |= _marked(work, stage, partition, count)
    return gone
