"""The sample of train text that a tokenizer is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from cram_composer.data.pipeline.progress import Progress, print_status
from cram_composer.data.pipeline.sources import Source
from cram_composer.data.pipeline.text import SPLITS, Piece, split_documents


def write_sample(
    sources: list[Source],
    path: Path,
    size: int,
    validation_fraction: float,
    seed: int,
    progress: Progress,
    method: str = "head",
) -> None:
    """Write up to `size` bytes of train documents to `path`, a piece per line, with a fair share for each source.

    With `how="head"` they are the first documents of every file. With `how="spread"` the whole source is read, and
    pieces (documents, or parts of long ones) are chosen by a hash of their text; a source of unknown size may be
    endless, so its head is used.
    """
    with open(path, "wb+") as file:
        for source, share in zip(sources, _fair_shares([s.expected_bytes for s in sources], size), strict=True):
            expected = source.expected_bytes
            if method == "spread" and expected is None:
                print_status(True, f"tokenizer.sample: the size of {source.name} is unknown; sampling its head")
            if method == "spread" and expected is not None:
                lines = _lines(source.pieces(), validation_fraction, seed)
                _write_spread(file, lines, share, expected, seed, progress)
            else:
                _write_head(file, _lines(source.sample(share), validation_fraction, seed), share, progress)


def _lines(pieces: Iterator[Piece], validation_fraction: float, seed: int) -> Iterator[bytes]:
    for piece in split_documents(pieces, validation_fraction, seed):
        if SPLITS[piece.split] == "train":
            yield piece.text.encode() + b"\n"


def _write_head(file: BinaryIO, lines: Iterator[bytes], share: int, progress: Progress) -> None:
    left = share
    for line in lines:
        file.write(line)
        progress.advance(len(line))
        left -= len(line)
        if left <= 0:
            break


def _write_spread(
    file: BinaryIO, lines: Iterator[bytes], share: int, expected: int, seed: int, progress: Progress
) -> None:
    """Append the `share` bytes of lines with the smallest hashes, in the order of the source."""
    begin = file.tell()
    key = seed.to_bytes(8, "little")
    # Sizes are estimates: up to four times too much is taken at first, and thinned out when the file grows.
    threshold = min(1 << 64, (4 * share << 64) // max(1, expected))
    hashes: list[int] = []
    sizes: list[int] = []
    written = 0
    for line in lines:
        progress.advance(len(line))
        digest = hashlib.blake2b(line, digest_size=8, key=key, person=b"sample").digest()
        chance = int.from_bytes(digest, "little")
        if chance >= threshold:
            continue
        file.write(line)
        hashes.append(chance)
        sizes.append(len(line))
        written += len(line)
        if written > 3 * share:
            hashes, sizes = _thin_out(file, begin, hashes, sizes, 2 * share)
            threshold, written = max(hashes, default=0), sum(sizes)
    _thin_out(file, begin, hashes, sizes, share)


def _thin_out(
    file: BinaryIO, begin: int, hashes: list[int], sizes: list[int], limit: int
) -> tuple[list[int], list[int]]:
    """Keep the lines from `begin` on with the smallest hashes, up to the one that reaches `limit` bytes."""
    order = np.argsort(np.array(hashes, np.uint64), kind="stable")
    lengths = np.array(sizes, np.int64)
    before = np.cumsum(lengths[order]) - lengths[order]
    kept = np.zeros(len(hashes), bool)
    kept[order[before < limit]] = True
    source = target = begin
    for keep, size in zip(kept.tolist(), sizes, strict=True):
        if keep:
            if source != target:
                file.seek(source)
                line = file.read(size)
                file.seek(target)
                file.write(line)
            target += size
        source += size
    file.seek(target)
    file.truncate()
    return [h for h, keep in zip(hashes, kept, strict=True) if keep], lengths[kept].tolist()


def _fair_shares(sizes: list[int | None], total: int) -> list[int]:
    """Divide `total`: small sources are taken whole, large and unknown ones share the rest."""
    shares = [0] * len(sizes)
    known = [total if size is None else size for size in sizes]
    left = total
    for done, i in enumerate(sorted(range(len(sizes)), key=known.__getitem__)):
        shares[i] = min(known[i], left // (len(sizes) - done))
        left -= shares[i]
    return shares
