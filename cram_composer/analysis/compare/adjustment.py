"""Losses adjusted for tokens: the difference between groups as if all runs had trained on equally many.

An analysis of covariance over the runs of all groups: a mean per group, an effect per seed if all groups have the same
seeds, and one slope of the loss on the logarithm of the tokens, which the runs themselves determine. It takes out what
a disturbed machine did to a run, and with it what a variant's own speed did to its loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.statistics import Difference, difference_of

_METHOD = "analysis of covariance"
_LEAST_SPREAD = 1e-9  # of the logarithm of tokens within groups, below which no slope can be estimated


@dataclass(frozen=True)
class Adjustment:
    """Differences from the baseline at equal tokens.

    Attributes:
        slope: nats per unit of the natural logarithm of tokens.
        differences: by name of the group.
    """

    slope: float
    differences: dict[str, Difference]


def adjust_for_tokens(groups: Sequence[Group], baseline: Group) -> Adjustment | None:
    """Compare final held-out losses at equal tokens.

    Returns:
        None if tokens are unknown, do not differ within groups, or runs are too few for a slope and a spread.
    """
    if any(not run.get("tokens") for group in groups for run in group.runs):
        return None
    points = [(group, *point) for group in groups for point in _points(group)]
    places, losses = np.array([point[2] for point in points]), np.array([point[3] for point in points])
    others = [group for group in groups if group is not baseline]
    columns = [[float(point[0] is other) for point in points] for other in others]
    effects = _seed_effects([[point[1] for point in points if point[0] is group] for group in groups])
    blocks = np.array([*columns, *effects]).reshape(-1, len(points)).T
    design = np.column_stack([blocks, np.ones(len(points))])
    within = places - design @ np.linalg.lstsq(design, places, rcond=None)[0]
    degrees = len(points) - int(np.linalg.matrix_rank(design)) - 1
    if degrees < 1 or float(within.std()) < _LEAST_SPREAD:
        return None
    design = np.column_stack([design, places - places.mean()])
    found, *_ = np.linalg.lstsq(design, losses, rcond=None)
    spread = math.sqrt(float(((losses - design @ found) ** 2).sum()) / degrees)
    errors = spread * np.sqrt(np.diag(np.linalg.pinv(design.T @ design)))
    fewest = min(group.seeds for group in groups)
    differences = {
        group.name: difference_of(float(found[n]), float(errors[n]), degrees, _METHOD, spread, fewest)
        for n, group in enumerate(others)
    }
    return Adjustment(float(found[-1]), differences)


def _points(group: Group) -> list[tuple[Any, float, float]]:
    """Return seed, logarithm of tokens and loss of every seed; of every run, without a seed, if a record has none."""
    places = group.by_seed(math.log(float(run.get("tokens"))) for run in group.runs)
    losses = group.by_seed(float(run.get("metrics.validation_loss")) for run in group.runs)
    if isinstance(places, dict) and isinstance(losses, dict):
        return [(seed, places[seed], losses[seed]) for seed in losses]
    return [(None, place, loss) for place, loss in zip(places, losses, strict=True)]


def _seed_effects(seeds: list[list[Any]]) -> list[list[float]]:
    """Return an indicator column for all but the first of the seeds of groups; none if these differ in their seeds."""
    first = sorted(set(seeds[0]), key=str)
    if len(first) < 2 or any(sorted(one, key=str) != first for one in seeds):
        return []
    return [[float(seed == chosen) for one in seeds for seed in one] for chosen in first[1:]]
