"""Two-level designs: which factors are on in each run, so that all runs together estimate every effect."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cram_composer.errors import ConfigError

# First rows of the cyclic designs (Plackett and Burman 1946), by the number of runs.
_CYCLIC = {
    4: "++-", 8: "+++-+--", 12: "++-+++---+-", 16: "++++-+-++--+---", 20: "++--++++-+-+----++-",
    24: "+++++-+-++--++--+-+----",
}  # fmt: skip
_MOST_FRACTIONAL = 16  # factors: 32 runs


def two_level_design(kind: str, factors: int) -> NDArray[np.int8]:
    """Return a design [runs, factors] of -1 (off) and +1 (on), with orthogonal columns and everything off in row 0.

    Args:
        kind: "plackett-burman", the fewest runs, in multiples of 4; an effect may be mixed with interactions of other
            pairs. "fractional", at least twice as many runs as factors, in powers of 2; no effect is mixed with one.
        factors: number of factors.

    Raises:
        ConfigError: there is no such design.
    """
    if kind == "fractional":
        if not 2 <= factors <= _MOST_FRACTIONAL:
            raise ConfigError(f"factors: a fractional design has 2 to {_MOST_FRACTIONAL}, got {factors}")
        return _regular((factors - 1).bit_length() + 1)[:, :factors]
    most = max(_CYCLIC) - 1
    if not 2 <= factors <= most:
        raise ConfigError(f"factors: a Plackett-Burman design has 2 to {most}, got {factors}")
    runs = next(size for size in _CYCLIC if size > factors)
    first = np.array([1 if sign == "+" else -1 for sign in _CYCLIC[runs]], dtype=np.int8)
    rows = [np.full(runs - 1, -1, dtype=np.int8), *(np.roll(first, shift) for shift in range(runs - 1))]
    return np.stack(rows)[:, :factors]


def _regular(base: int) -> NDArray[np.int8]:
    """Return the columns of resolution IV of 2^base runs: the products of an odd number of the base columns."""
    runs = np.array(list(itertools.product((-1, 1), repeat=base)), dtype=np.int8)
    odd = [chosen for size in range(1, base + 1, 2) for chosen in itertools.combinations(range(base), size)]
    return np.stack([runs[:, list(chosen)].prod(axis=1) for chosen in odd], axis=1).astype(np.int8)


def aliases(design: NDArray[np.int8], names: Sequence[str]) -> dict[str, list[tuple[str, float]]]:
    """Return for every factor the interactions of two others that its effect contains, and their share of it.

    A share of 1 or -1 cannot be told from the effect itself; an interaction is named "a x b".
    """
    columns = design.astype(float)
    found: dict[str, list[tuple[str, float]]] = {}
    for place, name in enumerate(names):
        found[name] = []
        for one, other in itertools.combinations([n for n in range(len(names)) if n != place], 2):
            share = float(columns[:, place] @ (columns[:, one] * columns[:, other])) / len(columns)
            if abs(share) > 1e-9:
                found[name].append((f"{names[one]} x {names[other]}", share))
    return found
