"""Worth of a difference: the budget with which the baseline reaches the challenger's loss.

The baseline's loss over its budget, from groups at two or more budgets, is interpolated in the logarithm of the budget
and inverted at the challenger's loss.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cram_composer.analysis.compare.comparability import data_refusals
from cram_composer.analysis.compare.groups import Group, differing_settings
from cram_composer.analysis.compare.statistics import LEVEL, RESAMPLES
from cram_composer.analysis.runs.run import RunData
from cram_composer.config.formatting import is_number
from cram_composer.errors import CramError

_BEYOND = 2.0  # the curve is extended up to this multiple of its longest budget, and down to this part of its shortest


@dataclass(frozen=True)
class Worth:
    """Budget at which the baseline has the challenger's loss, relative to the budget of both.

    Attributes:
        ratio: above 1 if the challenger is better; None if the loss lies beyond the curve.
        low, high: 95 % interval; None at an end beyond the curve.
    """

    ratio: float | None
    low: float | None
    high: float | None


def worth(challenger: Group, curve: Sequence[Group]) -> Worth:
    """Return what a challenger is worth on the baseline's curve.

    The interval is that of drawing every mean anew with its standard error, which is pooled over all groups.

    Args:
        challenger: trained with one of the curve's budgets.
        curve: groups of the baseline's configuration, each at another budget.

    Raises:
        CramError: groups whose configurations or budgets do not allow it.
    """
    if refusals := data_refusals([run for group in curve for run in group.runs]):
        raise CramError(f"--curve: not comparable: {refusals[0]}")
    limit = _limit(curve)
    curve = sorted(curve, key=lambda group: _limit_of(group.runs[0], limit) or 0.0)
    budgets = [_limit_of(group.runs[0], limit) for group in curve]
    own = _limit_of(challenger.runs[0], limit)
    if own is None or own not in budgets:
        raise CramError(f"--curve: no group of the baseline has the budget of {challenger.name}")
    losses = [group.final_losses() for group in (challenger, *curve)]
    degrees = sum(len(one) - 1 for one in losses)
    if not degrees:
        raise CramError("--curve: one run each, so the spread between seeds is unknown; run two more seeds")
    squares = sum((value - statistics.fmean(one)) ** 2 for one in losses for value in one)
    spread = math.sqrt(squares / degrees)
    random = np.random.default_rng(0)
    scale = np.sqrt(degrees / random.chisquare(degrees, RESAMPLES))[:, None]  # Student's t, the same spread for all
    errors = np.array([spread / math.sqrt(len(one)) for one in losses])
    drawn = np.array([statistics.fmean(one) for one in losses]) + scale * errors * random.standard_normal(
        (RESAMPLES, len(losses))
    )
    places = np.log(np.array(budgets, dtype=np.float64) / own)
    found = np.array([_invert(places, row[1:], row[0]) for row in drawn])
    best = _invert(places, np.array([statistics.fmean(one) for one in losses[1:]]), statistics.fmean(losses[0]))
    low, high = np.quantile(found, [(1.0 - LEVEL) / 2.0, (1.0 + LEVEL) / 2.0], method="nearest")
    return Worth(*(math.exp(value) if math.isfinite(value) else None for value in (best, float(low), float(high))))


def _invert(places: np.ndarray, losses: np.ndarray, loss: float) -> float:
    """Return the logarithm of the relative budget at which the curve has this loss; infinite beyond its ends."""
    falling = np.minimum.accumulate(losses)  # noise may make a longer run look worse
    if loss > falling[0]:
        slope = (falling[1] - falling[0]) / (places[1] - places[0])
        place = places[0] + (loss - falling[0]) / slope if slope < 0.0 else -math.inf
        return float(place) if place >= places[0] - math.log(_BEYOND) else -math.inf
    if loss < falling[-1]:
        slope = (falling[-1] - falling[-2]) / (places[-1] - places[-2])
        place = places[-1] + (loss - falling[-1]) / slope if slope < 0.0 else math.inf
        return float(place) if place <= places[-1] + math.log(_BEYOND) else math.inf
    return float(np.interp(-loss, -falling, places))


def _limit(curve: Sequence[Group]) -> str:
    """Return the limit in which the curve's budgets differ, such as "tokens" or "seconds". Raises CramError."""
    firsts = [group.runs[0] for group in curve]
    other = [key for key in differing_settings(firsts) if not key.startswith("budget")]
    if other:
        raise CramError(f"--curve: the groups differ in more than their budget: {', '.join(other[:3])}")
    for limit in ("tokens", "steps", "epochs", "seconds"):
        amounts = [_limit_of(run, limit) for run in firsts]
        if all(amount is not None for amount in amounts) and len(set(amounts)) == len(amounts) > 1:
            return limit
    raise CramError("--curve: needs groups of the baseline at two or more budgets of one kind")


def _limit_of(run: RunData, limit: str) -> float | None:
    value = (run.get("budget") or {}).get(limit)
    return None if value is None or not is_number(value) else float(value)
