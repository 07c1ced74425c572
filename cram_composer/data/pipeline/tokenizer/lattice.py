"""All segmentations of many words at once: expected counts of pieces, and a piece's best replacement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LONGEST_PIECE = 16  # characters
# The product of a word's probabilities has to stay above the smallest double: 24 characters at 1e-10 each do.
LONGEST_WORD = 24
LOWEST_PROBABILITY = 1e-10


@dataclass(frozen=True)
class Words:
    """Words of one length: `hashes` uint64 [length, W], one random number per character; `counts` [W]."""

    characters: NDArray  # int64 code points [length, W]
    hashes: NDArray
    counts: NDArray

    def substrings(self, longest: int) -> Iterator[tuple[int, int, NDArray]]:
        """Start, length and hash [W] of every substring, shorter ones of a start first."""
        length = len(self.hashes)
        for start in range(length):
            hashed = np.zeros(self.hashes.shape[1], np.uint64)
            for size in range(1, min(longest, length - start) + 1):
                hashed = hashed * _BASE + self.hashes[start + size - 1]
                yield start, size, hashed


def words_by_length(words: list[str], counts: NDArray) -> list[Words]:
    """The words of up to LONGEST_WORD characters, those of a length together and in the order given."""
    lengths = np.array([len(word) for word in words], np.int64)
    groups = []
    for length in range(1, LONGEST_WORD + 1):
        chosen = np.flatnonzero(lengths == length)
        if len(chosen):
            text = "".join([words[i] for i in chosen])
            points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64).reshape(-1, length).T
            groups.append(Words(np.ascontiguousarray(points), _mixed(points), counts[chosen].astype(np.float64)))
    return groups


class Lattice:
    """Words and the pieces [P] they can be made of; `probabilities` float64 [P] may have zeros for pieces not in use.

    No logarithm or exponential is taken, so that results are the same on every processor.
    """

    def __init__(self, groups: list[Words], piece_hashes: NDArray) -> None:
        self._groups = groups
        self._pieces = len(piece_hashes)
        order = np.argsort(piece_hashes, kind="stable")
        ranked = piece_hashes[order]
        self._edges: list[list[tuple[int, int]]] = []
        self._ids: list[NDArray] = []  # int32 [edges, W]: the piece, or P where the substring is none
        for group in groups:
            edges, ids = [], []
            for start, size, hashed in group.substrings(LONGEST_PIECE):
                place = np.minimum(np.searchsorted(ranked, hashed), len(ranked) - 1)
                edges.append((start, start + size))
                ids.append(np.where(ranked[place] == hashed, order[place], self._pieces).astype(np.int32))
            self._edges.append(edges)
            self._ids.append(np.stack(ids))

    def expected_counts(self, probabilities: NDArray) -> NDArray:
        """How often each piece is used, [P], over all segmentations by their probability (forward-backward)."""
        padded = np.append(probabilities, 0.0)
        total = np.zeros(self._pieces + 1)
        for group, edges, ids in zip(self._groups, self._edges, self._ids, strict=True):
            length, width = group.hashes.shape
            share = padded[ids]  # [edges, W]
            forward = np.zeros((length + 1, width))
            backward = np.zeros((length + 1, width))
            forward[0] = backward[length] = 1.0
            for edge, (start, end) in enumerate(edges):  # all edges into a place come before those out of it
                forward[end] += forward[start] * share[edge]
            for edge, (start, end) in reversed(list(enumerate(edges))):
                backward[start] += share[edge] * backward[end]
            scale = 1.0 / forward[length]
            for edge, (start, end) in enumerate(edges):
                share[edge] *= forward[start] * backward[end] * scale * group.counts
            total += np.bincount(ids.ravel(), share.ravel(), self._pieces + 1)
        return total[:-1]

    def best_without_itself(self, probabilities: NDArray) -> list[NDArray]:
        """For words that are pieces: probability of the best segmentation into smaller pieces, [W] of each group."""
        padded = np.append(probabilities, 0.0)
        found = []
        for group, edges, ids in zip(self._groups, self._edges, self._ids, strict=True):
            length, width = group.hashes.shape
            best = np.zeros((length + 1, width))
            best[0] = 1.0
            for (start, end), pieces in zip(edges, ids, strict=True):
                if end - start < length:
                    np.maximum(best[end], best[start] * padded[pieces], out=best[end])
            found.append(best[length])
        return found


_BASE = np.uint64(0x9E3779B97F4A7C15)


def _mixed(points: NDArray) -> NDArray:
    """A 64-bit number for each code point (splitmix64), so that sums of them do not collide."""
    mixed = points.astype(np.uint64) * _BASE + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
