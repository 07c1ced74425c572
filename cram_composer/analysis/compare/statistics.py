"""Differences between groups of a few runs: intervals that keep their word with three seeds, and how many are needed.

The verdict is by Student's t: of paired differences where both groups have the same seeds, Welch's otherwise. The
percentile bootstrap is reported beside it and decides nothing: with three to five seeds it is far too narrow, as
tests/analysis/compare/test_statistics.py measures (docs/compare.md has the numbers).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

LEVEL = 0.95
POWER = 0.8
PAIRED = "paired by seed"
RESAMPLES = 10_000
_MOST_SEEDS = 1000
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@dataclass(frozen=True)
class Difference:
    """Mean of `a` minus mean of `b`.

    Attributes:
        mean: the difference.
        low, high: 95 % interval by Student's t; None where no group has two runs.
        p_value: two-sided, of no difference; None as above.
        method: "paired by seed", "Welch", or "pooled" (a group of one run borrows the other's spread).
        degrees: degrees of freedom of Student's t.
        spread: standard deviation of the paired differences, or that of one run, pooled over both groups.
        runs: pairs, or runs of the smaller group.
        bootstrap: 95 % percentile interval over seeds, for comparison; None where a group has one run.
    """

    mean: float
    low: float | None
    high: float | None
    p_value: float | None
    method: str
    degrees: float
    spread: float | None
    runs: int
    bootstrap: tuple[float, float] | None


def compare_means(a: dict[int, float] | Sequence[float], b: dict[int, float] | Sequence[float]) -> Difference:
    """The difference of two groups' means; values by seed are paired where both have the same two or more seeds."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys() and len(a) > 1:
        differences = np.array([a[seed] - b[seed] for seed in sorted(a)])
        spread = float(differences.std(ddof=1))
        return _student(
            float(differences.mean()),
            spread / math.sqrt(len(differences)),
            len(differences) - 1,
            PAIRED,
            spread,
            len(differences),
            _percentiles(differences[None]),
        )
    one, other = (np.array(list(x.values() if isinstance(x, dict) else x), dtype=np.float64) for x in (a, b))
    mean, fewer = float(one.mean() - other.mean()), min(len(one), len(other))
    freedom = len(one) + len(other) - 2
    if freedom == 0:
        return Difference(mean, None, None, None, "one run each", 0.0, None, fewer, None)
    squares = [float(((x - x.mean()) ** 2).sum()) for x in (one, other)]
    pooled = math.sqrt(sum(squares) / freedom)
    if fewer == 1:
        error = pooled * math.sqrt(1 / len(one) + 1 / len(other))
        return _student(mean, error, freedom, "pooled", pooled, fewer, None)
    parts = [s / (len(x) - 1) / len(x) for s, x in zip(squares, (one, other), strict=True)]
    degrees = float(freedom)
    if sum(parts):  # Welch and Satterthwaite
        degrees = sum(parts) ** 2 / sum(v**2 / (len(x) - 1) for v, x in zip(parts, (one, other), strict=True))
    return _student(mean, math.sqrt(sum(parts)), degrees, "Welch", pooled, fewer, _percentiles(one, -other))


def _student(
    mean: float, error: float, degrees: float, method: str, spread: float, runs: int, boot: tuple[float, float] | None
) -> Difference:
    half = student_quantile(LEVEL, degrees) * error
    p_value = 1.0 - student_within(abs(mean) / error, degrees) if error else float(mean == 0.0)
    return Difference(mean, mean - half, mean + half, p_value, method, degrees, spread, runs, boot)


def _percentiles(*groups: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap of the sum of the groups' means, each resampled by itself; the same every time."""
    random = np.random.default_rng(0)
    total = np.zeros(RESAMPLES)
    for group in groups:
        values = np.ravel(group)
        total += values[random.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(total, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def student_within(t: float, degrees: float) -> float:
    """P(|T| <= t) of Student's t with `degrees` >= 1 of freedom, accurate to 1e-10.

    With T = sqrt(degrees) tan(angle) the density is cos(angle)^(degrees - 1), smooth on a short interval.
    """
    end = math.atan2(t, math.sqrt(degrees))
    if math.isinf(t):
        return 1.0
    angles = end * (_NODES + 1) / 2
    area = end / 2 * float(_WEIGHTS @ np.cos(angles) ** (degrees - 1))
    log_beta = math.lgamma(0.5) + math.lgamma(degrees / 2) - math.lgamma((degrees + 1) / 2)
    return min(1.0, 2 * area / math.exp(log_beta))


@functools.cache
def student_quantile(level: float, degrees: float) -> float:
    """The t with P(|T| <= t) = `level`: 4.303 for 95 % and 2 degrees of freedom."""
    low, high = 0.0, 1.0
    while student_within(high, degrees) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_within(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def power(shift: float, degrees: float) -> float:
    """Chance that a t test at 5 % sees an effect of `shift` standard errors, on the right side of zero.

    Integrates over the estimated variance, which is that of a chi-square with `degrees` of freedom over `degrees`.
    """
    critical = student_quantile(LEVEL, degrees)
    # Of the chi-square's root over sqrt(degrees): smooth around one, nothing beyond 8 deviations.
    width = 8 / math.sqrt(2 * degrees)
    start, end = max(0.0, 1 - width), 1 + width
    root = (start + end) / 2 + (end - start) / 2 * _NODES
    log_density = (degrees - 1) * np.log(root) - degrees * root**2 / 2
    log_density += math.log(2) + degrees / 2 * math.log(degrees / 2) - math.lgamma(degrees / 2)
    normal = NormalDist()
    seen = np.array([normal.cdf(abs(shift) - critical * r) for r in root])
    return float((end - start) / 2 * (_WEIGHTS * np.exp(log_density)) @ seen)


def seeds_needed(effect: float, spread: float, paired: bool) -> int | None:
    """Seeds of each group that show an effect of this size with 80 % power at 5 %; None beyond a thousand.

    `spread` is as in Difference: of paired differences if `paired`, of single runs otherwise.
    """
    if _power_of(effect, spread, _MOST_SEEDS, paired) < POWER:
        return None
    low, high = 1, _MOST_SEEDS  # too few and enough: power rises with the seeds
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _power_of(effect, spread, middle, paired) < POWER else (low, middle)
    return high


def detectable(spread: float, seeds: int, paired: bool) -> float:
    """The smallest effect that `seeds` of each group show with 80 % power at 5 %."""
    low, high = 0.0, spread or 1.0
    while _power_of(high, spread, seeds, paired) < POWER:
        high *= 2
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _power_of(middle, spread, seeds, paired) < POWER else (low, middle)
    return high


def _power_of(effect: float, spread: float, seeds: int, paired: bool) -> float:
    error = spread * math.sqrt((1 if paired else 2) / seeds)
    if not error:
        return float(effect != 0.0)
    return power(effect / error, seeds - 1 if paired else 2 * seeds - 2)


def holm(p_values: Sequence[float]) -> list[bool]:
    """Which of several differences are still there at 5 % for all of them together (Holm 1979)."""
    kept, standing = [False] * len(p_values), True
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        standing = standing and p_values[place] <= (1 - LEVEL) / (len(p_values) - rank)
        kept[place] = standing
    return kept
