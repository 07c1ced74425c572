"""Forecast of which of two recipes wins at the next size, and how often such forecasts were right.

The final losses of two recipes are subtracted where shape, budget and seed agree. Geiping and Goldstein (2022, arXiv
2212.14034) observe that changes to a model shift its curve of loss against compute and leave its slope: the difference
is then the same at all sizes. Least squares over the logarithm of the parameters tells
how it changes, and each size is forecast from the smaller ones alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cram_composer.analysis.compare.comparability import data_refusals
from cram_composer.analysis.compare.statistics import student_quantile
from cram_composer.analysis.runs.run import Array, RunData
from cram_composer.analysis.runs.table import budget_text
from cram_composer.errors import CramError

Interval = tuple[float, float, float]  # value, low, high


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
    def is_right(self) -> bool | None:
        """True if the forecast names the better one; None without a forecast."""
        return None if self.forecast is None else (self.forecast < 0.0) == (self.mean < 0.0)


@dataclass(frozen=True)
class Forecast:
    """Differences by size, smallest first, and what they say about the next one.

    Attributes:
        slope: nats per doubling of the parameters, with its 95 % interval; None below three sizes.
        next_parameters: as much larger than the largest size as that is than the second largest.
        next_difference: forecast there, with the 95 % interval of a mean; None below three sizes.
    """

    sizes: list[SizeDifference]
    slope: Interval | None
    next_parameters: float
    next_difference: Interval | None


def forecast(challenger: Sequence[RunData], baseline: Sequence[RunData]) -> Forecast:
    """Compare two recipes size by size and forecast the next size.

    Raises:
        CramError: losses are not comparable, or fewer than two sizes have runs of both with equal budgets and seeds.
    """
    if refusals := data_refusals([*challenger, *baseline]):
        raise CramError(f"--against: losses of these runs are not comparable: {'; '.join(refusals)}")
    ours, theirs = _by_condition(challenger), _by_condition(baseline)
    shapes: dict[str, list[tuple[float, float]]] = {}  # parameters and difference of every pair
    for condition in ours.keys() & theirs.keys():
        other = theirs[condition]
        loss, reference = (run.get("metrics.validation_loss") for run in (ours[condition], other))
        shapes.setdefault(condition[0], []).append((float(other.get("parameters")), loss - reference))
    if len(shapes) < 2:
        raise CramError(
            f"--against: {len(shapes)} sizes have runs of both with equal layers, hidden size, budget and seed; "
            "two or more are needed"
        )
    ordered = sorted(shapes.items(), key=lambda item: item[1][0][0])
    pairs = [np.array(sorted(of_shape)) for _, of_shape in ordered]
    sizes = [
        SizeDifference(shape, own[0, 0], own[:, 1], _extrapolate(pairs[:place], own[0, 0]) if place else None)
        for place, ((shape, _), own) in enumerate(zip(ordered, pairs, strict=True))
    ]
    next_parameters = sizes[-1].parameters ** 2 / sizes[-2].parameters
    slope, following = _trend(np.concatenate(pairs), next_parameters) if len(sizes) > 2 else (None, None)
    return Forecast(sizes, slope, next_parameters, following)


def _by_condition(runs: Sequence[RunData]) -> dict[tuple[str, str, Any], RunData]:
    """Return finished runs by shape, budget and seed."""
    found = {}
    for run in runs:
        if run.get("status") == "finished" and run.get("metrics.validation_loss") is not None:
            model = run.get("config.model") or {}
            shape = f"{model.get('num_hidden_layers')}x{model.get('hidden_size')}"
            found[shape, budget_text(run), run.get("config.seed")] = run
    return found


def _extrapolate(smaller: Sequence[Array], parameters: float) -> float:
    """Extrapolate the differences of smaller sizes, [pairs, 2] each; the only size's mean if there is one."""
    if len(smaller) == 1:
        return float(smaller[0][:, 1].mean())
    pairs = np.concatenate(smaller)
    slope, level = np.polyfit(np.log(pairs[:, 0]), pairs[:, 1], 1)
    return float(level + slope * math.log(parameters))


def _trend(pairs: Array, parameters: float) -> tuple[Interval, Interval]:
    """Return the change per doubling of the parameters, and the line's value at `parameters`, by least squares."""
    doublings = np.log2(pairs[:, 0])
    design = np.column_stack([np.ones(len(pairs)), doublings])
    found, *_ = np.linalg.lstsq(design, pairs[:, 1], rcond=None)
    degrees = len(pairs) - 2
    variance = float(((pairs[:, 1] - design @ found) ** 2).sum()) / degrees
    covariance = variance * np.linalg.inv(design.T @ design)
    quantile = student_quantile(0.95, degrees)

    def interval(row: Array) -> Interval:
        value, half = float(row @ found), quantile * math.sqrt(float(row @ covariance @ row))
        return value, value - half, value + half

    return interval(np.array([0.0, 1.0])), interval(np.array([1.0, math.log2(parameters)]))


def forecast_as_json(found: Forecast) -> dict[str, Any]:
    """Return a forecast as JSON values."""
    return {
        "sizes": [
            {
                "shape": size.shape,
                "parameters": size.parameters,
                "differences": size.differences.tolist(),
                "forecast": size.forecast,
                "right": size.is_right,
            }
            for size in found.sizes
        ],
        "per_doubling": found.slope,
        "next": {"parameters": found.next_parameters, "difference": found.next_difference},
    }
