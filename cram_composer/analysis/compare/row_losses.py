"""Noise of the held-out text: the difference between two groups with the held-out rows as the sample.

All runs of a data set are evaluated on the same rows with the same masks. The interval over seeds therefore says
nothing about other held-out text, and this one nothing about other seeds. Rows are paired, which takes out how hard
each one is. They are taken as independent, though several may be of one document: where documents span many rows, the
interval is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.statistics import Difference, difference_of
from cram_composer.analysis.runs.run import Array, RunData
from cram_composer.runs.folder import ROW_LOSSES

ROWS = "paired by held-out row"


@dataclass(frozen=True)
class RowComparison:
    """The groups' losses over the held-out rows, challenger first, and their difference."""

    a: float
    b: float
    difference: Difference


def compare_rows(a: Group, b: Group) -> RowComparison | None:
    """Compare the final held-out losses of the mean run of each group, with held-out rows as the sample.

    The groups must be comparable, which makes rows and masks equal. If they share two seeds or more, only those count,
    as in the comparison over seeds. The loss is a ratio, of summed nats to predicted tokens; its standard error is that
    of the ratio estimator (Cochran 1977, section 6.4).

    Returns:
        None if a run has no losses of rows, or other numbers of them or of predicted tokens.
    """
    seeds = [{run.get("config.seed") for run in group.runs} for group in (a, b)]
    shared = seeds[0] & seeds[1]
    paired = len(shared) > 1 and len(shared) == min(map(len, seeds))
    groups = [[run for run in group.runs if not paired or run.get("config.seed") in shared] for group in (a, b)]
    read = [read_row_losses(run) for runs in groups for run in runs]
    losses = [found for found in read if found is not None]
    if len(losses) < len(read):
        return None
    predicted, rows = losses[0][:, 1], len(losses[0])
    if any(len(found) != rows or (found[:, 1] != predicted).any() for found in losses):
        return None
    tokens = float(predicted.sum())
    means = [_mean(groups[0], losses[: len(groups[0])]), _mean(groups[1], losses[len(groups[0]) :])]
    differences = means[0] - means[1]
    mean = float(differences.sum()) / tokens
    spread = float((differences - mean * predicted).std(ddof=1)) * rows / tokens
    found = difference_of(mean, spread / math.sqrt(rows), rows - 1, ROWS, spread, rows)
    return RowComparison(float(means[0].sum()) / tokens, float(means[1].sum()) / tokens, found)


def _mean(runs: Sequence[RunData], losses: Sequence[Array]) -> Array:
    """Return the mean over seeds of the summed losses of rows, [rows]; runs of one seed count once."""
    by_seed: dict[object, list[Array]] = {}
    for run, found in zip(runs, losses, strict=True):
        by_seed.setdefault(run.get("config.seed"), []).append(found[:, 0])
    mean: Array = np.mean([np.mean(found, axis=0) for found in by_seed.values()], axis=0)
    return mean


def read_row_losses(run: RunData) -> Array | None:
    """Return the losses of the held-out rows, [rows, 2]; None if there are fewer than two, or no file of them."""
    try:
        found = np.load(run.path / ROW_LOSSES, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found.astype(np.float64) if found.ndim == 2 and found.shape[1] == 2 and len(found) > 1 else None
