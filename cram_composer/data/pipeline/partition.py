"""Which part of the text a partition works on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from cram_composer.data.pipeline.sources import Source
from cram_composer.data.pipeline.sources.base import Part
from cram_composer.data.pipeline.text import Piece


def partition_pieces(source: Source, partition: int, partitions: int) -> Iterator[Piece]:
    """The pieces of a source that belong to one of `partitions`: whole files, or every n-th document of each.

    Files are dealt out, the largest first, to the partition that has least; a source with fewer files than partitions
    is read by all of them, each taking its documents and skipping the others'. So is one with a limit on its
    characters, because where that is reached does not depend on the partitions.
    """
    if partitions == 1:
        yield from source.pieces()
    elif len(source.parts) >= partitions and source.max_characters is None:
        yield from chain.from_iterable(part.pieces() for part in _dealt(source.parts, partitions)[partition])
    else:
        yield from _every(source.pieces(), partition, partitions)


def expected_bytes(source: Source, partition: int, partitions: int) -> int | None:
    """Bytes of text to expect of `partition_pieces`, roughly; None where nobody knows."""
    total = source.expected_bytes
    if total is None or partitions == 1:
        return total
    if len(source.parts) < partitions or source.max_characters is not None:
        return total // partitions
    return sum(part.expected_bytes or 0 for part in _dealt(source.parts, partitions)[partition])


def _dealt(parts: list[Part], partitions: int) -> list[list[Part]]:
    hands: list[list[int]] = [[] for _ in range(partitions)]
    loads = [0] * partitions
    for i in sorted(range(len(parts)), key=lambda i: (-(parts[i].expected_bytes or 0), i)):
        lightest = min(range(partitions), key=lambda p: (loads[p], len(hands[p]), p))
        hands[lightest].append(i)
        loads[lightest] += parts[i].expected_bytes or 0
    return [[parts[i] for i in sorted(hand)] for hand in hands]


def _every(pieces: Iterator[Piece], first: int, step: int) -> Iterator[Piece]:
    document = 0
    for piece in pieces:
        if document % step == first:
            yield piece
        document += piece.last
