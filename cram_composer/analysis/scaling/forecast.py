"""Forecast of which of two recipes wins at the next size, and how often such forecasts were right.

The final losses of two recipes are subtracted where shape, budget and seed agree. Geiping and Goldstein (2022, arXiv
2212.14034) observe that changes to a model shift its curve of loss against compute and leave its slope: the difference
is then the same at all sizes. Least squares over the logarithm of the parameters tells how it changes, and each size is
forecast from the smaller ones alone. The points of the line are the means of the sizes: runs of one size say nothing
about others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cram_composer.analysis.compare.statistics import student_quantile
from cram_composer.analysis.runs.run import Array, RunData
from cram_composer.analysis.scaling.points import model_size, usable_runs
from cram_composer.analysis.scaling.prediction import SAME_SIZE
from cram_composer.errors import CramError

Interval = tuple[float, float, float]  # value, low, high
_Condition = tuple[str, str, Any]  # shape, budget, seed


@dataclass(frozen=True)
class SizeDifference:
    """Differences at one size: challenger minus baseline, in nats; negative if the challenger is better.

    Attributes:
        shape: layers x hidden size.
        parameters: of the baseline.
        differences: [pairs], of runs with equal budgets and seeds.
        forecast: from the smaller sizes; None for the smallest.
    """

    shape: str
    parameters: float
    differences: Array
    forecast: float | None

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(self.differences.mean())

    @property
    def is_decided(self) -> bool:
        """True if the 95 % interval of the mean, by Student's t over the pairs, does not contain zero."""
        count = len(self.differences)
        if count < 2:
            return False
        error = float(self.differences.std(ddof=1)) / math.sqrt(count)
        return abs(self.mean) > student_quantile(0.95, count - 1) * error

    @property
    def is_right(self) -> bool | None:
        """True if the forecast names the better recipe; None without a forecast, or if the size has not decided."""
        if self.forecast is None or not self.is_decided:
            return None
        return (self.forecast < 0.0) == (self.mean < 0.0)


@dataclass(frozen=True)
class Forecast:
    """Differences by size, smallest first, and what they say about the next one.

    Attributes:
        slope: nats per doubling of the parameters, with its 95 % interval; None below three sizes.
        next_parameters: as much larger than the largest size as that is than the second largest.
        next_difference: forecast there, with the 95 % interval of a mean; None below three sizes.
        notes: on runs left out.
    """

    sizes: list[SizeDifference]
    slope: Interval | None
    next_parameters: float
    next_difference: Interval | None
    notes: list[str]


def forecast(challenger: Sequence[RunData], baseline: Sequence[RunData], embeddings: bool = True) -> Forecast:
    """Compare two recipes size by size, at the budgets that all sizes share, and forecast the next size.

    Args:
        challenger, baseline: runs of the two recipes.
        embeddings: count embeddings as parameters.

    Raises:
        CramError: losses are not comparable, fewer than two sizes have runs of both with equal budgets and seeds, or
            several runs of one recipe have equal ones.
    """
    usable, notes = usable_runs([*challenger, *baseline])
    chosen = {id(run) for run in usable}
    ours, theirs = (_by_condition([run for run in runs if id(run) in chosen]) for runs in (challenger, baseline))
    shared = [condition for condition in theirs if condition in ours]
    by_shape: dict[str, set[str]] = {}
    for shape, budget, _ in shared:
        by_shape.setdefault(shape, set()).add(budget)
    common = set.intersection(*by_shape.values()) if by_shape else set()
    if len(by_shape) < 2 or not common:
        raise CramError(
            f"--against: {len(by_shape)} sizes have runs of both with equal layers, hidden size, budget and seed; two "
            "or more with a budget in common are needed; train them with `cram sweep sizes`"
        )
    left_out = sum(budget not in common for _, budget, _ in shared)
    notes += [f"left out {left_out} pairs whose budget not all sizes have"] * bool(left_out)
    shapes: dict[str, list[float]] = {}
    parameters: dict[str, float] = {}
    for condition in shared:
        shape, budget, _ = condition
        if budget in common:
            loss, other = (group[condition].get("metrics.validation_loss") for group in (ours, theirs))
            shapes.setdefault(shape, []).append(loss - other)
            parameters[shape] = model_size(theirs[condition], embeddings)
    ordered = sorted(shapes, key=lambda shape: parameters[shape])
    places = np.log2([parameters[shape] for shape in ordered])
    if (np.diff(places) * math.log(2.0) < SAME_SIZE).any():
        raise CramError(f"--against: sizes {', '.join(ordered)} hardly differ in parameters; leave out one of them")
    means = np.array([np.mean(shapes[shape]) for shape in ordered])
    sizes = [
        SizeDifference(
            shape,
            parameters[shape],
            np.array(shapes[shape]),
            _line(places[:n], means[:n], places[n])[0] if n else None,
        )
        for n, shape in enumerate(ordered)
    ]
    following = 2 * places[-1] - places[-2]
    slope, expected = _trend(places, means, following) if len(sizes) > 2 else (None, None)
    return Forecast(sizes, slope, float(2.0**following), expected, notes)


def _by_condition(runs: Sequence[RunData]) -> dict[_Condition, RunData]:
    """Return runs by shape, budget and seed. Raises CramError for two of one condition."""
    found: dict[_Condition, RunData] = {}
    for run in runs:
        model, budget = run.get("config.model") or {}, run.get("budget") or {}
        limits = {name: limit for name, limit in budget.items() if limit is not None}
        shape = f"{model.get('num_hidden_layers')}x{model.get('hidden_size')}"
        condition = shape, json.dumps(limits, sort_keys=True), run.get("config.seed")
        if condition in found:
            raise CramError(
                f"--against: {found[condition].path} and {run.path} have equal layers, hidden size, budget and seed; "
                "select one of them with a filter, such as recipe=muon"
            )
        found[condition] = run
    return found


def _line(places: Array, means: Array, at: float) -> tuple[float, float]:
    """Return the value at `at` and the slope of the line through the means; the only mean and 0 if there is one."""
    if len(means) == 1:
        return float(means[0]), 0.0
    slope, level = np.polyfit(places, means, 1)
    return float(level + slope * at), float(slope)


def _trend(places: Array, means: Array, at: float) -> tuple[Interval, Interval]:
    """Return the slope of the line through the means of three or more sizes and its value at `at`."""
    design = np.column_stack([np.ones(len(places)), places])
    value, slope = _line(places, means, at)
    degrees = len(places) - 2
    residuals = means - (value + slope * (places - at))
    covariance = float((residuals**2).sum()) / degrees * np.linalg.inv(design.T @ design)
    quantile = student_quantile(0.95, degrees)

    def interval(middle: float, row: Array) -> Interval:
        half = quantile * math.sqrt(float(row @ covariance @ row))
        return middle, middle - half, middle + half

    return interval(slope, np.array([0.0, 1.0])), interval(value, np.array([1.0, at]))


def forecast_as_json(found: Forecast) -> dict[str, Any]:
    """Return a forecast as JSON values."""
    return {
        "sizes": [
            {
                "shape": one.shape,
                "parameters": one.parameters,
                "differences": one.differences.tolist(),
                "forecast": one.forecast,
                "decided": one.is_decided,
                "right": one.is_right,
            }
            for one in found.sizes
        ],
        "per_doubling": found.slope,
        "next": {"parameters": found.next_parameters, "difference": found.next_difference},
        "notes": found.notes,
    }
