"""Keys by which documents that are the same, or nearly, find each other."""

from __future__ import annotations

import re
from functools import cache

import numpy as np
import xxhash
from numpy.typing import NDArray
from rensa import RMinHash

from cram_composer.config.schema.data_build import ExactDuplicatesConfig, NearDuplicatesConfig

_NO_WORD = re.compile(r"\W+")

# A base for polynomials modulo 2^64 and its inverse (it is odd): the first is Knuth's (MMIX).
_BASE = 6364136223846793005
_INVERSE = pow(_BASE, -1, 1 << 64)

# rensa starts threads for more tokens than 2^16, which no later fork of the process survives.
_MAX_TOKENS = 1 << 15


def document_key(text: str, config: ExactDuplicatesConfig) -> int:
    """64 bits of xxh3 of the text, white space collapsed."""
    text = " ".join(text.split())
    if config.ignore_case:
        text = text.casefold()
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def band_keys(text: str, config: NearDuplicatesConfig, seed: int) -> NDArray[np.uint64]:
    """Keys [bands] of which two documents of Jaccard similarity s share one with probability 1 - (1 - s^rows)^bands.

    The similarity is that of their sets of shingles: `words` consecutive words, without case and punctuation. A text
    of fewer words is one shingle. The signature is rensa's R-MinHash (Fast Similarity Sketching, Dahlgaard, Knudsen
    and Thorup 2017, arXiv 1704.04370) over all shingles; it is the same on every machine.
    """
    shingles = _shingles(text, config.words)
    parts = [
        RMinHash.digest_matrix_from_flat_token_hashes(
            part, np.array([0, len(part)], np.uint64), config.bands * config.rows, seed
        ).to_rows()[0]
        for part in np.array_split(shingles, -(-len(shingles) // _MAX_TOKENS))
    ]
    # A minimum over everything is the least of the minima over parts. rensa does otherwise for positions that few
    # shingles leave empty, which thousands do not.
    signature = np.array(parts, np.uint32).min(axis=0).astype("<u4").reshape(config.bands, config.rows)
    # The band's number goes into its key: the keys of all bands are looked up among each other.
    keys = [xxhash.xxh3_64_intdigest(band.tobytes(), seed=number) for number, band in enumerate(signature)]
    return np.array(keys, np.uint64)


def _shingles(text: str, words: int) -> NDArray[np.uint64]:
    """Hashes of every run of `words` words, one at least."""
    folded = text.casefold()
    spelt = _NO_WORD.sub(" ", folded).strip() or folded
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
    # + 1, that bytes of value 0 count.
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers[: len(data)], out=prefix[1:])
    return _mixed((prefix[ends] - prefix[starts]) * inverses[starts])


@cache  # a few sizes, each twice the one before
def _powers(base: int, count: int) -> NDArray[np.uint64]:
    """base^0, base^1, ..., modulo 2^64."""
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A bijection of 64 bits in which every bit depends on every bit (the finaliser of SplitMix64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values
