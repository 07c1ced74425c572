"""Hash keys of exact and near duplicates."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray
from rensa import RMinHash

from cram_composer.config.schema.data_build import ExactDuplicatesConfig, NearDuplicatesConfig

_NON_WORD = re.compile(r"\W+")

# A base for polynomials modulo 2^64 (Knuth's MMIX) and its inverse, which exists because the base is odd.
_BASE = 6364136223846793005
_INVERSE = pow(_BASE, -1, 1 << 64)

# rensa starts threads for more than 2^16 tokens, and a process with threads cannot be forked safely.
_MAX_TOKENS = 1 << 15


def document_key(text: str, config: ExactDuplicatesConfig) -> int:
    """Return a 64-bit xxh3 hash of the text, white space collapsed."""
    text = " ".join(text.split())
    if config.ignore_case:
        text = text.casefold()
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def band_keys(text: str, config: NearDuplicatesConfig, seed: int) -> NDArray[np.uint64]:
    """Return keys [bands]; documents of Jaccard similarity s share one with probability 1 - (1 - s^rows)^bands.

    The similarity is that of their sets of shingles: `words` consecutive words without case and punctuation. A shorter
    text is one shingle. The signature is rensa's R-MinHash (Fast Similarity Sketching, Dahlgaard, Knudsen and Thorup
    2017, arXiv 1704.04370) over all shingles; it is the same on every machine.
    """
    shingles = _shingles(text, config.words)
    parts = [
        RMinHash.digest_matrix_from_flat_token_hashes(
            part, np.array([0, len(part)], np.uint64), config.bands * config.rows, seed
        ).to_rows()[0]
        for part in np.array_split(shingles, -(-len(shingles) // _MAX_TOKENS))
    ]
    # The minimum over all shingles is the minimum over parts. rensa differs only for positions that few shingles leave
    # empty, which does not happen with thousands.
    signature = np.array(parts, np.uint32).min(axis=0).astype("<u4").reshape(config.bands, config.rows)
    # The band's number is part of its key, because the keys of all bands share the buckets.
    keys = [xxhash.xxh3_64_intdigest(band.tobytes(), seed=number) for number, band in enumerate(signature)]
    return np.array(keys, np.uint64)


def _shingles(text: str, words: int) -> NDArray[np.uint64]:
    """Return hashes of every run of `words` words, at least one."""
    folded = text.casefold()
    spelt = _NON_WORD.sub(" ", folded).strip() or folded
    data = np.frombuffer(spelt.encode("utf-8", "surrogatepass"), np.uint8)
    spaces = np.flatnonzero(data == ord(" "))
    starts = np.concatenate([[0], spaces + 1])
    ends = np.append(spaces, len(data))
    count = max(len(starts) - words + 1, 1)
    starts, ends = starts[:count], ends[-count:]

    # The polynomial of a run of bytes is the difference of two prefixes, shifted back to power 0.
    size = 1 << max(len(data), 1 << 16).bit_length()
    powers, inverses = _powers(_BASE, size), _powers(_INVERSE, size)
    prefix = np.zeros(len(data) + 1, np.uint64)
    # + 1, so that bytes of value 0 count.
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)], out=prefix[1:])
    return _mix_bits((prefix[ends] - prefix[starts]) * inverses[starts])


@cache  # a few sizes, each twice the previous one
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """Return base^0, base^1, ..., modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _mix_bits(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of 64-bit values bijectively (the finaliser of SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
