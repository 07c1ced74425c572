"""Laws of in-loop losses: a run's learning rate as the area under it and how far it has decayed.

Tissue et al. (2024, arXiv 2408.11029): loss = E + B / S^b - G F at every step of a run. S is the sum of the learning
rates so far. F sums the decreases of the rate, each weighted by how far the loss has responded to it, which takes about
a thousand steps. Here rates are relative to the peak and steps count their tokens: S is tokens at the full rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.signal import lfilter

from cram_composer.analysis.compare.row_losses import read_row_losses
from cram_composer.analysis.runs.run import Array, RunData
from cram_composer.analysis.scaling.law import RESAMPLES, Fit, PowerLaw, fit
from cram_composer.config.formatting import is_number
from cram_composer.config.validation.combinations import AVERAGES

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

    def areas(self) -> tuple[Array, Array]:
        """Return the tokens at the full rate, and the annealing in the same unit, after every step [steps]."""
        tokens = np.diff(self.tokens, prepend=0.0)
        response = lfilter([1.0], [1.0, -MEMORY], self._falls())
        return np.cumsum(self.rates * tokens), np.cumsum(response * tokens)

    def _falls(self) -> Array:
        """Decreases of the rate at every step since the peak, [steps]."""
        falls = -np.diff(self.rates, prepend=self.rates[0])
        falls[: self.peak + 1] = 0.0
        return falls

    def stretched(self, tokens: Array) -> tuple[Array, Array]:
        """Return both areas at the end of runs with this schedule over other numbers of tokens [...].

        Longer runs have more steps. Steps that follow a decrease of the rate are taken to be of equal size.
        """
        factors, annealed, full = self._at_lengths
        factor = tokens / self.tokens[-1]
        return full * factor, np.interp(np.log(factor), np.log(factors), annealed)

    @cached_property
    def _at_lengths(self) -> tuple[Array, Array, float]:
        """Return factors of the length and the annealing at the end of each, and tokens at the full rate."""
        factors = np.geomspace(1.0 / _REACH, _REACH, _GRID)
        falls, (full, annealed) = self._falls(), self.areas()
        at = np.flatnonzero(falls)

        def felt(factor: Array) -> Array:
            """Share of a whole response that is felt at the end, summed over the decreases."""
            return (1.0 - MEMORY ** (factor[:, None] * (len(self.tokens) - at))) @ falls[at]

        here = felt(np.ones(1))[0]
        return factors, felt(factors) * (annealed[-1] / here if here else 0.0), float(full[-1])


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

    Those of averaged weights do not follow it, nor do those of a branch, whose trunk is in another folder. The trace
    must be complete.
    """
    averages = any(run.get(f"config.algorithms.{name}") is not None for name in AVERAGES)
    if averages or run.get("config.optimizer.name") == "schedule-free" or run.get("branched_from"):
        return None
    steps, rates, tokens = (run.trace[name] for name in ("step", "lr", "tokens"))
    is_whole = len(steps) and (np.diff(steps, prepend=-1.0) == 1.0).all() and tokens[-1] == run.get("tokens")
    if not is_whole or not rates.max() > 0.0:
        return None
    schedule = Schedule(tokens, rates / rates.max())
    seen = run.evaluations("eval/loss")
    used = seen["tokens"] > schedule.tokens[schedule.peak]
    if not used.any():
        return None
    final = float(run.get("metrics.validation_loss"))
    losses = seen["value"][used] + _harder_rows(run)
    return Curve(schedule, np.append(seen["tokens"][used], schedule.tokens[-1]), np.append(losses, final))


def _harder_rows(run: RunData) -> float:
    """Return the final loss of all held-out rows minus that of the first ones, which are evaluated in the loop."""
    rows, losses = run.get("config.eval.rows"), read_row_losses(run)
    if losses is None or not is_number(rows) or not 0 < rows < len(losses):
        return 0.0
    whole, first = losses.sum(axis=0), losses[: int(rows)].sum(axis=0)
    return float(whole[0] / whole[1] - first[0] / first[1])


def fit_curves(sizes: Sequence[float], curves: Sequence[Curve], sized: bool, resamples: int = RESAMPLES) -> Fit:
    """Fit loss = E + A / N^a + B / S^b - G F to the losses of runs of N parameters, or without A / N^a.

    Args:
        sizes: parameters of each run. curves: their losses.
        sized: the runs are of several sizes.
        resamples: laws of the bootstrap.
    """
    areas = [curve.areas() for curve in curves]
    full, annealed = (np.concatenate([area[place] for area in areas]) for place in (0, 1))
    counts = [len(curve.loss) for curve in curves]
    x = np.stack([np.repeat(sizes, counts), full], axis=1)[:, 0 if sized else 1 :]
    loss, runs = np.concatenate([curve.loss for curve in curves]), np.repeat(range(len(curves)), counts)
    found = fit(x, loss, resamples, annealed, runs)
    longest = max(curves, key=lambda curve: curve.tokens[-1]).schedule
    laws = [AnnealedLaw(**vars(law), schedule=longest, sized=sized) for law in (found.law, *found.resampled)]
    return replace(found, law=laws[0], resampled=laws[1:])


def with_schedule(found: Fit, schedule: Schedule) -> Fit:
    """Return a fit of `fit_curves` whose predictions are for runs with this schedule."""
    laws = [replace(law, schedule=schedule) for law in (found.law, *found.resampled)]  # type: ignore[call-arg]
    return replace(found, law=laws[0], resampled=laws[1:])
