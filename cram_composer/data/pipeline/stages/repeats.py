"""Exact-substring removal (Lee et al. 2022, arXiv 2107.06499): long spans of text that occurred before.

Instead of a suffix array over the whole corpus, whose memory is proportional to it, spans are found by *anchors*:
positions chosen by the bytes around them alone, so that equal spans have equal anchors (winnowing, Schleimer, Wilkerson
and Aiken 2003, section 3). Anchors with the same hash are brought together on disk (`buckets.earlier_pairs`) and the
text around them is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cram_composer.data.pipeline.stages.buckets import PARTITION_SHIFT

_BLOCK = 1 << 14  # windows hashed at a time, so that the arrays stay in the processor's cache
_COMPARED_BYTES = 1 << 18  # compared at a time, around anchors; each takes some 30 bytes of memory
_FIRST_PAIRS = 16  # compared at first, then four times as many
_FIRST_STEP = 256  # compared at first to extend a match, then twice as many
_SHIFT = np.uint64(PARTITION_SHIFT)
_OFFSET = (1 << PARTITION_SHIFT) - 1
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)

Span = tuple[int, int]  # first byte and the byte after the last


class PartitionText(NamedTuple):
    """UTF-8 text of a partition's documents, concatenated, and the ascending start of each; both arrays [n]."""

    text: NDArray[np.uint8]
    starts: NDArray[np.uint64]


def gram_length(length: int) -> int:
    """Return the bytes that an anchor's hash covers, for spans of `length` bytes.

    A longer gram makes an equal hash more reliable; a shorter one gives fewer anchors: 2 / (length - gram_length + 2)
    per byte.
    """
    return length - length // 3 + 1


def find_anchors(text: bytes, length: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Return keys [n] and ascending offsets [n] of the text's anchors.

    Two equal spans of `length` >= 16 bytes, in any texts, have an anchor with the same key at the same distance
    from their start: the gram of `gram_length` bytes with the smallest hash of all grams in the span. A shorter text
    has no anchor.
    """
    gram_bytes = gram_length(length)
    window = length - gram_bytes + 1  # grams in a span
    data = np.frombuffer(text, np.uint8)
    found: list[tuple[NDArray[np.uint64], NDArray[np.int64]]] = []
    for start in range(0, len(data) - length + 1, _BLOCK):
        hashes = _gram_hashes(data[start : start + _BLOCK + length - 1], gram_bytes)
        ranks = (hashes >> np.uint64(32)).astype(np.uint32)  # half the bits take half the time
        least = _sliding_extreme(np.minimum, ranks, window)
        # A gram is an anchor if its hash is the smallest of any span that contains it.
        padding = np.zeros(window - 1, np.uint32)
        chosen = np.flatnonzero(
            ranks == _sliding_extreme(np.maximum, np.concatenate([padding, least, padding]), window)
        )
        found.append((hashes[chosen], chosen + start))
    if not found:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint32)
    # Neighbouring blocks have grams in common.
    offsets, at = np.unique(np.concatenate([offsets for _, offsets in found]), return_index=True)
    return np.concatenate([keys for keys, _ in found])[at], offsets.astype(np.uint32)


def _gram_hashes(data: NDArray[np.uint8], gram_bytes: int) -> NDArray[np.uint64]:
    """Return hashes [n - gram + 1] of every run of `gram` >= 8 bytes."""
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    hashes = np.ndarray(len(data) - 7, "<u8", padded, strides=(1,)).astype(np.uint64)
    covered = 8
    while covered < gram_bytes:
        # Two adjacent hashes, or overlapping ones at the end, combine to one of up to twice as many bytes.
        shift = min(covered, gram_bytes - covered)
        left = hashes[: len(hashes) - shift] * _MULTIPLIER
        left ^= left >> np.uint64(32)
        left += hashes[shift:]
        hashes = left
        covered += shift
    hashes *= _MULTIPLIER
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    return hashes


def _sliding_extreme(extreme: np.ufunc, values: NDArray[np.uint32], window: int) -> NDArray[np.uint32]:
    """Return the minimum or maximum [n - window + 1] of every run of `window` values."""
    width = 1
    while width < window:
        step = min(width, window - width)
        values = extreme(values[:-step], values[step:])
        width += step
    return values


def repeated_spans(
    text: bytes | NDArray[np.uint8],
    later: NDArray[np.integer],
    earlier: NDArray[np.uint64],
    position: int,
    texts: Callable[[int], PartitionText],
    length: int,
) -> list[Span]:
    """Return the spans of a document that occurred before, sorted and disjoint.

    A byte is in a span if it is in a run of `length` bytes that occurs before in one document: in an earlier one or,
    without overlap, in the same one. Because of the overlap rule, text that repeats itself ("aaaa") keeps its first
    `length` bytes. The earlier text may itself be in a removed span. The result is complete if `earlier` contains every
    candidate; a run is missed if none of its anchors is paired with the position that the run repeats. The ends of
    spans are shrunk to whole characters.

    Args:
        text: the document, UTF-8.
        later: [n], offsets of anchors in the document.
        earlier: [n], positions with the same anchor, as found by `buckets.earlier_pairs`.
        position: of the document's first byte (`partition << 40 | offset`).
        texts: returns the text of a partition by number.
        length: minimum length of a repeated run in bytes.
    """
    data = text if isinstance(text, np.ndarray) else np.frombuffer(text, np.uint8)
    covered = np.zeros(len(data) + 1, bool)  # one more than bytes, so that a span always ends
    most = max(_COMPARED_BYTES // (2 * length - gram_length(length)), 1)
    later = np.asarray(later, np.int64)
    partitions = earlier >> _SHIFT
    for partition in np.unique(partitions):
        mine = np.flatnonzero(partitions == partition)
        own = position & _OFFSET if partition == position >> PARTITION_SHIFT else None
        comparison = _Comparison(data, texts(int(partition)), own, length)
        start, size = 0, min(_FIRST_PAIRS, most)
        while start < len(mine):
            these = mine[start : start + size]
            offsets = (earlier[these] & np.uint64(_OFFSET)).astype(np.int64)
            comparison.cover(covered, later[these].astype(np.int64), offsets)
            # A few pairs suffice for a document that is a copy as a whole: covered bytes are not compared.
            start, size = start + size, min(4 * size, most)
    edges = np.flatnonzero(np.diff(covered, prepend=False))
    shrunk = (_whole_characters(data, int(start), int(end)) for start, end in edges.reshape(-1, 2))
    return [(start, end) for start, end in shrunk if start < end]


class _Comparison:
    """Compares a document with the text of one partition; `own` is the document's start if it is part of that text."""

    def __init__(self, data: NDArray[np.uint8], text: PartitionText, own: int | None, length: int) -> None:
        self._data = data
        self._earlier = text.text
        self._starts = text.starts
        self._own = own
        self._length = length
        self._gram = gram_length(length)

    def cover(self, covered: NDArray[np.bool_], later: NDArray[np.int64], earlier: NDArray[np.int64]) -> None:
        """Set `covered` [bytes + 1] for the matches of at least `length` bytes around anchors [n]."""
        reach = self._length - self._gram
        useful = ~_is_covered(covered, later - reach, later + self._length)
        if self._own is not None:
            # Closer than `length`, a run and its copy overlap or are in different documents.
            useful &= self._own + later - earlier >= self._length
        later, earlier = later[useful], earlier[useful]
        if not len(later):
            return
        low, high = self._document_bounds(earlier)
        before, after = self._matching_bytes(later, earlier, low, high)
        found = before + self._gram + after >= self._length
        columns = (later - before, later + self._gram + after, later - earlier, low, high)
        for start, end, shift, first, last in zip(*(column[found].tolist() for column in columns), strict=True):
            # Bytes that a span covers already need no comparison: their own anchors handle what follows.
            if not covered[end]:
                right = self._earlier[end - shift : last]
                end += _common_prefix_length(self._data[end : end + len(right)], right)
            if start and not covered[start - 1]:
                left = self._earlier[first : start - shift][::-1]
                start -= _common_prefix_length(self._data[max(start - len(left), 0) : start][::-1], left)
            covered[start:end] = True

    def _document_bounds(self, earlier: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first byte of the documents at these positions, and the byte after their last."""
        following = np.searchsorted(self._starts, earlier.astype(self._starts.dtype), side="right")
        ends = self._starts.take(following, mode="clip").astype(np.int64)
        ends[following == len(self._starts)] = len(self._earlier)
        return self._starts[following - 1].astype(np.int64), ends

    def _matching_bytes(
        self, later: NDArray[np.int64], earlier: NDArray[np.int64], low: NDArray[np.int64], high: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Count equal bytes before and after each pair of anchors, within reach of a run of `length` bytes.

        The count before is negative where the anchors themselves differ.
        """
        reach = self._length - self._gram
        steps = np.arange(-reach, self._length)
        here, there = later[:, None] + steps, earlier[:, None] + steps
        equal = (here >= 0) & (here < len(self._data)) & (there >= low[:, None]) & (there < high[:, None])
        # Clipped positions are outside of the documents and count as different.
        equal &= self._data.take(here, mode="clip") == self._earlier.take(there, mode="clip")
        before = _count_leading(equal[:, :reach][:, ::-1])
        before[~equal[:, reach : reach + self._gram].all(axis=1)] = -self._length
        return before, _count_leading(equal[:, reach + self._gram :])


def _is_covered(covered: NDArray[np.bool_], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return True where all existing bytes from `start` [n] up to `end` [n] are covered."""
    last = len(covered) - 1
    total = np.zeros(last + 1, np.int64)
    np.cumsum(covered[:last], out=total[1:])
    start, end = start.clip(0, last), end.clip(0, last)
    return total[end] - total[start] == end - start


def _count_leading(equal: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of leading True entries of each row [n, m]."""
    return np.append(equal, np.zeros((len(equal), 1), bool), axis=1).argmin(axis=1)


def _common_prefix_length(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> int:
    """Return the length of the common prefix of two texts."""
    size = min(len(left), len(right))
    at, step = 0, _FIRST_STEP
    while at < size:
        different = left[at : min(at + step, size)] != right[at : min(at + step, size)]
        if different.any():
            return at + int(different.argmax())
        at += len(different)
        step *= 2
    return size


def _whole_characters(data: NDArray[np.uint8], start: int, end: int) -> Span:
    """Shrink a span to whole characters."""
    while start < end and data[start] & 0xC0 == 0x80:
        start += 1
    while end > start and end < len(data) and data[end] & 0xC0 == 0x80:
        end -= 1
    return start, end


def remove_spans(text: bytes, spans: list[Span]) -> bytes:
    """Return the text without the spans, which are sorted and disjoint."""
    kept = []
    at = 0
    for start, end in spans:
        kept.append(text[at:start])
        at = end
    return b"".join([*kept, text[at:]])
