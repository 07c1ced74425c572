"""Effects of the factors of a two-level design, with intervals.

An effect is the mean over the runs with a factor on minus the mean over those with it off; each uses every run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cram_composer.analysis.compare.statistics import LEVEL, holm, student_quantile

LENTH = "Lenth"
SEEDS = "seeds"


@dataclass(frozen=True)
class Effect:
    """Effect of one factor.

    Attributes:
        name: the factor.
        value: mean with it on minus mean with it off.
        low, high: 95 % interval.
        p_value: two-sided, under no effect.
        is_clear: significant at a family-wise error rate of 5 % over all factors (Holm 1979).
    """

    name: str
    value: float
    low: float
    high: float
    p_value: float
    is_clear: bool

    @property
    def is_likely(self) -> bool:
        """True if the interval excludes zero."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True)
class Effects:
    """Effects of all factors, largest first.

    Attributes:
        effects: one per factor.
        error: standard error of an effect.
        degrees: degrees of freedom of Student's t.
        method: "seeds", from the differences between seeds of a run, or "Lenth", from the smaller effects.
    """

    effects: list[Effect]
    error: float
    degrees: float
    method: str


def contrasts(design: NDArray[np.int8], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for every factor of a design the mean of values [runs, seeds] with it on minus that with it off."""
    found: NDArray[np.float64] = 2.0 * design.T.astype(float) @ values.mean(axis=1) / len(design)
    return found


def estimate_effects(design: NDArray[np.int8], names: Sequence[str], values: NDArray[np.float64]) -> Effects:
    """Estimate the effects of a design.

    With two or more seeds, the error is what remains of the values after the means of runs and of seeds. With one, it
    is Lenth's pseudo standard error (1989, Technometrics 31), which takes most effects for none.

    Args:
        design: -1 and +1, [runs, factors].
        names: the factors.
        values: of every run and seed, [runs, seeds].
    """
    from scipy import stats

    runs, seeds = values.shape
    found = contrasts(design, values)
    if seeds > 1:
        rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
        degrees = float((runs - 1) * (seeds - 1))
        error, method = 2.0 * math.sqrt(float((rest**2).sum()) / degrees / (runs * seeds)), SEEDS
    else:
        sizes = np.abs(found)
        small = sizes[sizes < 2.5 * 1.5 * np.median(sizes)]
        error, degrees, method = 1.5 * float(np.median(small if len(small) else sizes)), len(names) / 3.0, LENTH
    half = student_quantile(LEVEL, degrees) * error
    p_values = [2.0 * float(stats.t.sf(abs(value) / error, degrees)) if error else float(not value) for value in found]
    clear = holm(p_values)
    effects = [
        Effect(name, float(value), float(value - half), float(value + half), p, is_clear)
        for name, value, p, is_clear in zip(names, found, p_values, clear, strict=True)
    ]
    return Effects(sorted(effects, key=lambda effect: -abs(effect.value)), error, degrees, method)
