"""Losses adjusted for tokens: the difference between groups as if all runs had trained on equally many.

An analysis of covariance over the runs of all groups: a mean per group, an effect per seed if all groups have the same
seeds, and one slope of the loss on the logarithm of the tokens, which the runs themselves determine. It takes out what
a disturbed machine did to a run, and with it what a variant's own speed did to its loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    runs = [(group, run) for group in groups for run in group.runs]
    if any(not run.get("tokens") for _, run in runs):
        return None
    places = np.log([float(run.get("tokens")) for _, run in runs])
    losses = np.array([float(run.get("metrics.validation_loss")) for _, run in runs])
    others = [group for group in groups if group is not baseline]
    columns = [[float(group is other) for group, _ in runs] for other in others]
    blocks = np.array([*columns, *_seed_effects(groups)]).reshape(-1, len(runs)).T
    design = np.column_stack([blocks, np.ones(len(runs))])
    within = places - design @ np.linalg.lstsq(design, places, rcond=None)[0]
    degrees = len(runs) - int(np.linalg.matrix_rank(design)) - 1
    if degrees < 1 or float(within.std()) < _LEAST_SPREAD:
        return None
    design = np.column_stack([design, places - places.mean()])
    found, *_ = np.linalg.lstsq(design, losses, rcond=None)
    spread = math.sqrt(float(((losses - design @ found) ** 2).sum()) / degrees)
    errors = spread * np.sqrt(np.diag(np.linalg.pinv(design.T @ design)))
    fewest = min(len(group.runs) for group in groups)
    differences = {
        group.name: difference_of(float(found[n]), float(errors[n]), degrees, _METHOD, spread, fewest)
        for n, group in enumerate(others)
    }
    return Adjustment(float(found[-1]), differences)


def _seed_effects(groups: Sequence[Group]) -> list[list[float]]:
    """Return an indicator column for all but the first seed; none if groups differ in their seeds."""
    seeds = [[run.get("config.seed") for run in group.runs] for group in groups]
    first = sorted(set(seeds[0]), key=str)
    if len(first) < 2 or any(sorted(one, key=str) != first for one in seeds):
        return []
    return [[float(seed == chosen) for one in seeds for seed in one] for chosen in first[1:]]
