"""Time at which a group reaches the final loss of another group."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.measures import AXES, Axis, Kind, curve
from cram_composer.analysis.compare.statistics import Difference, compare_means


@dataclass(frozen=True)
class TimeToLoss:
    """Time at which `a` reaches the final loss of `b`, as a share of the time of `b`, for the same kind of curve.

    `ratio` is the logarithm of that share, None unless all runs reach the loss; `reached` counts those that do.
    """

    a: str
    b: str
    axis: Axis
    kind: Kind
    reached: int
    runs: int
    ratio: Difference | None


def same_objective(a: Group, b: Group) -> bool:
    """Return True if all runs have the same training objective."""
    keys = ("config.objective", "config.algorithms.label_smoothing")
    return len({str([run.get(key) for key in keys]) for run in [*a.runs, *b.runs]}) == 1


def times_to_loss(a: Group, b: Group) -> list[TimeToLoss]:
    """Return times in both directions, by wall-clock and tokens.

    Uses the training loss if a run lacks evaluations, and returns nothing if the training objectives then differ.
    """
    kind: Kind = "held-out"
    if any(len(curve(run, kind, "wall-clock").x) < 2 for run in [*a.runs, *b.runs]):
        kind = "training"
    if kind == "training" and not same_objective(a, b):
        return []
    return [
        found
        for one, other in ((a, b), (b, a))
        for axis in AXES[:2]
        if (found := _time_to_loss(one, other, kind, axis)) is not None
    ]


def _time_to_loss(a: Group, b: Group, kind: Kind, axis: Axis) -> TimeToLoss | None:
    curves = [[curve(run, kind, axis) for run in group.runs] for group in (a, b)]
    if not all(len(one.x) for group in curves for one in group):
        return None
    ends = [float(one.y[-1]) for one in curves[1]]
    mean = sum(ends) / len(ends)
    by_seed = b.by_seed(ends)
    seeds = {run.get("config.seed") for run in a.runs}
    paired = isinstance(by_seed, dict) and by_seed.keys() == seeds

    def target(place: int) -> float:
        return by_seed[a.runs[place].get("config.seed")] if paired else mean

    reached = [_after_start(one.reaches(target(place))) for place, one in enumerate(curves[0])]
    count = sum(one is not None for one in reached)
    ratio = None
    if count == len(reached):
        logs = a.by_seed([math.log(one) for one in reached if one is not None])
        ratio = compare_means(logs, b.by_seed([math.log(one.x[-1]) for one in curves[1]]))
    return TimeToLoss(a.name, b.name, axis, kind, count, len(reached), ratio)


def _after_start(x: float | None) -> float | None:
    return x if x is None or x > 0 else None
