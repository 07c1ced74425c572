"""Laws of in-loop losses: a run's learning rate as the area under it and how far it has decayed.

Tissue et al. (2024, arXiv 2408.11029): loss = E + B / S^b - C F at every step of a run. S is the sum of the learning
rates so far. F sums the decreases of the rate, each weighted by how far the loss has responded to it, which takes about
a thousand steps. Here rates are relative to the peak and steps count their tokens: S is tokens at the full rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.signal import lfilter

from cram_composer.analysis.runs.run import Array, RunData
from cram_composer.analysis.scaling.law import RESAMPLES, Fit, PowerLaw, fit

MEMORY = 0.999  # the paper's lambda: share of a response that is still to come, per step
_REACH = 1e4  # factor by which a schedule can be stretched or compressed
_GRID = 200


@dataclass(frozen=True)
class Schedule:
    """Learning rate of a run.

    Attributes:
        tokens: after every step, [steps].
        rates: of every step, relative to the peak, [steps].
    """

    tokens: Array
    rates: Array

    @property
    def peak(self) -> int:
        """Index of the first step at the highest rate."""
        return int(self.rates.argmax())

    @cached_property
    def _falls(self) -> Array:
        """Decreases of the rate since the peak, times the tokens of their steps, [steps]."""
        falls = -np.diff(self.rates, prepend=self.rates[0])
        falls[: self.peak + 1] = 0.0
        return falls * np.diff(self.tokens, prepend=0.0)

    def areas(self) -> tuple[Array, Array]:
        """Return the tokens at the full rate, and the annealing in the same unit, after every step [steps]."""
        full = np.cumsum(self.rates * np.diff(self.tokens, prepend=0.0))
        pending = lfilter([MEMORY], [1.0, -MEMORY], self._falls)
        return full, (np.cumsum(self._falls) - pending) / (1.0 - MEMORY)

    def stretched(self, tokens: Array) -> tuple[Array, Array]:
        """Return both areas at the end of runs with this schedule over other numbers of tokens [...]."""
        factors, annealed, full = self._at_lengths
        factor = tokens / self.tokens[-1]
        return full * factor, np.interp(np.log(factor), np.log(factors), annealed)

    @cached_property
    def _at_lengths(self) -> tuple[Array, Array, float]:
        """Return factors of the length and the annealing at the end of each, and tokens at the full rate."""
        factors = np.geomspace(1.0 / _REACH, _REACH, _GRID)
        at = np.flatnonzero(self._falls)
        # Over so many times the steps, a decrease is as large, and its step is as many times longer before the end.
        felt = 1.0 - MEMORY ** (factors[:, None] * (len(self.tokens) - at))
        return factors, felt @ self._falls[at] / (1.0 - MEMORY), float(self.areas()[0][-1])


@dataclass(frozen=True)
class Curve:
    """Held-out losses of a run since its rate was highest, the final one last.

    Attributes:
        schedule: learning rate of the run.
        tokens, loss: [evaluations], nats.
    """

    schedule: Schedule
    tokens: Array
    loss: Array

    def areas(self) -> tuple[Array, Array]:
        """Return tokens at the full rate and annealing at the evaluations, [evaluations] each."""
        at = np.searchsorted(self.schedule.tokens, self.tokens).clip(max=len(self.schedule.tokens) - 1)
        full, annealed = self.schedule.areas()
        return full[at], annealed[at]


@dataclass(frozen=True, kw_only=True)
class AnnealedLaw(PowerLaw):
    """A law of in-loop losses that gives the final losses of runs of a given size and length.

    Attributes:
        schedule: of the longest run, which is stretched to other lengths.
        sized: the law has a term of the parameters; otherwise all its runs are of one size.
    """

    schedule: Schedule
    sized: bool

    def loss(self, x: Array, annealed: Array | float = 0.0) -> Array:
        """Return the final losses [points] at x = (parameters, tokens) [points, 2]; the schedule gives `annealed`."""
        full, annealed = self.schedule.stretched(x[..., 1])
        terms = np.stack([x[..., 0], full], axis=-1) if self.sized else full[..., None]
        return super().loss(terms, annealed)


def read_curve(run: RunData) -> Curve | None:
    """Return the held-out losses of a finished run, or None if it has none in the loop that follow its learning rate.

    Those of averaged weights do not follow it, nor do those of a branch, whose trunk is in another folder.
    """
    apart = ("config.algorithms.ema", "config.algorithms.swa", "branched_from")
    if any(run.get(key) is not None for key in apart):
        return None
    steps, rates = run.trace["step"], run.trace["lr"]
    if not len(steps) or (np.diff(steps, prepend=-1.0) != 1.0).any() or not np.nanmax(rates) > 0.0:
        return None
    schedule = Schedule(run.trace["tokens"], np.nan_to_num(rates) / np.nanmax(rates))
    seen = run.evaluations("eval/loss")
    used = seen["tokens"] > schedule.tokens[schedule.peak]
    if not used.any():
        return None
    final = float(run.get("metrics.validation_loss"))
    return Curve(schedule, np.append(seen["tokens"][used], schedule.tokens[-1]), np.append(seen["value"][used], final))


def fit_curves(sizes: Sequence[float], curves: Sequence[Curve], sized: bool, resamples: int = RESAMPLES) -> Fit:
    """Fit loss = E + A / N^a + B / S^b - C F to the losses of runs of N parameters, or without A / N^a.

    Args:
        sizes: parameters of each run. curves: their losses.
        sized: the runs are of several sizes.
        resamples: laws of the bootstrap.
    """
    areas = [curve.areas() for curve in curves]
    full, annealed = (np.concatenate([area[place] for area in areas]) for place in (0, 1))
    counts = [len(curve.loss) for curve in curves]
    x = np.stack([np.repeat(sizes, counts), full], axis=1)[:, 0 if sized else 1 :]
    found = fit(
        x,
        np.concatenate([curve.loss for curve in curves]),
        annealed=annealed,
        runs=np.repeat(range(len(curves)), counts),
    )
    longest = max(curves, key=lambda curve: curve.tokens[-1]).schedule

    def scheduled(law: PowerLaw) -> AnnealedLaw:
        return AnnealedLaw(**vars(law), schedule=longest, sized=sized)

    return replace(found, law=scheduled(found.law), resampled=[scheduled(law) for law in found.resampled])
