"""Assignment of text to partitions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from cram_composer.data.pipeline.sources import Source
from cram_composer.data.pipeline.sources.base import Part
from cram_composer.data.pipeline.text import Piece


def partition_pieces(source: Source, partition: int, partitions: int) -> Iterator[Piece]:
    """Yield the pieces of a source that belong to a partition: whole files, or every n-th document.

    Files are assigned in order of decreasing size to the partition with the least text. A source with fewer files than
    partitions is read by all of them, each keeping its share of documents. So is a source with a limit, which must not
    depend on the number of partitions.
    """
    if partitions == 1:
        yield from source.pieces()
    elif len(source.parts) >= partitions and not source.is_limited:
        yield from chain.from_iterable(part.pieces() for part in _assign_parts(source.parts, partitions)[partition])
    else:
        yield from _every_nth_document(source.pieces(), partition, partitions)


def expected_bytes(source: Source, partition: int, partitions: int) -> int | None:
    """Estimate the bytes of text in `partition_pieces`; None if unknown."""
    total = source.expected_bytes
    if total is None or partitions == 1:
        return total
    if len(source.parts) < partitions or source.is_limited:
        return total // partitions
    return sum(part.expected_bytes or 0 for part in _assign_parts(source.parts, partitions)[partition])


def _assign_parts(parts: list[Part], partitions: int) -> list[list[Part]]:
    assigned: list[list[int]] = [[] for _ in range(partitions)]
    loads = [0] * partitions
    for i in sorted(range(len(parts)), key=lambda i: (-(parts[i].expected_bytes or 0), i)):
        lightest = min(range(partitions), key=lambda p: (loads[p], len(assigned[p]), p))
        assigned[lightest].append(i)
        loads[lightest] += parts[i].expected_bytes or 0
    return [[parts[i] for i in sorted(indices)] for indices in assigned]


def _every_nth_document(pieces: Iterator[Piece], first: int, step: int) -> Iterator[Piece]:
    document = 0
    for piece in pieces:
        if document % step == first:
            yield piece
        document += piece.last
