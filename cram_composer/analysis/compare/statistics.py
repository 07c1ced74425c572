"""Differences between small groups of runs, with intervals valid for three seeds, and the number of seeds needed.

The verdict uses Student's t test: paired if both groups have the same seeds, Welch's otherwise. A bootstrap over seeds
is far too narrow for three to five of them (docs/explanation/statistics.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
POWER = 0.8
PAIRED = "paired by seed"
RESAMPLES = 10_000
_MOST_SEEDS = 1000


@dataclass(frozen=True)
class Difference:
    """Mean of `a` minus mean of `b`.

    Attributes:
        mean: the difference.
        low, high: 95 % interval by Student's t; None if no group has two runs.
        p_value: two-sided, under no difference; None if no group has two runs.
        method: "paired by seed", "Welch", "pooled" (a group of one run uses the other's spread) or "one run each".
        degrees: degrees of freedom of Student's t.
        spread: standard deviation of the paired differences, or of single runs, pooled over both groups.
        runs: pairs, or runs of the smaller group.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    method: str
    degrees: float
    spread: float | None
    runs: int


def compare_means(a: dict[int, float] | Sequence[float], b: dict[int, float] | Sequence[float]) -> Difference:
    """Compare the means of two groups; values by seed are paired if one group has two or more seeds, all shared."""
    shared = a.keys() & b.keys() if isinstance(a, dict) and isinstance(b, dict) else set()
    if isinstance(a, dict) and isinstance(b, dict) and len(shared) > 1 and len(shared) == min(len(a), len(b)):
        differences = np.array([a[seed] - b[seed] for seed in sorted(shared)])
        spread = float(differences.std(ddof=1))
        return difference_of(
            float(differences.mean()),
            spread / math.sqrt(len(differences)),
            len(differences) - 1,
            PAIRED,
            spread,
            len(differences),
        )
    one, other = (np.array(list(x.values() if isinstance(x, dict) else x), dtype=np.float64) for x in (a, b))
    mean, fewer = float(one.mean() - other.mean()), min(len(one), len(other))
    freedom = len(one) + len(other) - 2
    if freedom == 0:
        return Difference(mean, None, None, None, "one run each", 0.0, None, fewer)
    squares = [float(((x - x.mean()) ** 2).sum()) for x in (one, other)]
    pooled = math.sqrt(sum(squares) / freedom)
    if fewer == 1:
        error = pooled * math.sqrt(1 / len(one) + 1 / len(other))
        return difference_of(mean, error, freedom, "pooled", pooled, fewer)
    parts = [s / (len(x) - 1) / len(x) for s, x in zip(squares, (one, other), strict=True)]
    degrees = float(freedom)
    if sum(parts):  # Welch and Satterthwaite
        degrees = sum(parts) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, (one, other), strict=True))
    return difference_of(mean, math.sqrt(sum(parts)), degrees, "Welch", pooled, fewer)


def difference_of(mean: float, error: float, degrees: float, method: str, spread: float, runs: int) -> Difference:
    """Return a difference with its interval and p-value by Student's t, from its standard error."""
    from scipy import stats  # takes a second to import

    half = student_quantile(LEVEL, degrees) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, degrees)) if error else float(mean == 0.0)
    return Difference(mean, mean - half, mean + half, p_value, method, degrees, spread, runs)


def student_quantile(level: float, degrees: float) -> float:
    """Return the t with P(|T| <= t) = `level` for Student's t: 4.303 for 95 % and 2 degrees of freedom."""
    from scipy import stats

    return float(stats.t.ppf((1 + level) / 2, degrees))


def power(shift: float, degrees: float) -> float:
    """Return the probability that a t test at 5 % detects an effect of `shift` standard errors with the right sign."""
    from scipy import stats

    return float(stats.nct.sf(student_quantile(LEVEL, degrees), degrees, abs(shift)))


def seeds_needed(effect: float, spread: float, paired: bool) -> int | None:
    """Return the seeds per group needed to detect an effect with 80 % power at 5 %; None above a thousand.

    `spread` is the standard deviation of paired differences if `paired`, of single runs otherwise.
    """
    if _power_with_seeds(effect, spread, _MOST_SEEDS, paired) < POWER:
        return None
    low, high = 1, _MOST_SEEDS  # bisection: power rises with the number of seeds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _power_with_seeds(effect, spread, middle, paired) < POWER else (low, middle)
    return high


def detectable_effect(spread: float, seeds: int, paired: bool) -> float:
    """Return the smallest effect that `seeds` per group detect with 80 % power at 5 %."""
    low, high = 0.0, spread or 1.0
    while _power_with_seeds(high, spread, seeds, paired) < POWER:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _power_with_seeds(middle, spread, seeds, paired) < POWER else (low, middle)
    return high


def _power_with_seeds(effect: float, spread: float, seeds: int, paired: bool) -> float:
    error = spread * math.sqrt((1 if paired else 2) / seeds)
    if not error:
        return float(effect != 0.0)
    return power(effect / error, seeds - 1 if paired else 2 * seeds - 2)


def holm(p_values: Sequence[float]) -> list[bool]:
    """Mark the differences that are significant at a family-wise error rate of 5 % (Holm 1979)."""
    significant, rejecting = [False] * len(p_values), True
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        rejecting = rejecting and p_values[place] <= (1 - LEVEL) / (len(p_values) - rank)
        significant[place] = rejecting
    return significant
