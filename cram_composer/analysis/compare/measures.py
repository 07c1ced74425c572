"""Measures to compare runs by: loss curves along several axes, and bits per character."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cram_composer.analysis.figures.curves import ema, ema_horizon
from cram_composer.analysis.runs.run import Array, RunData
from cram_composer.config.formatting import duration, is_number, short_count

Axis = Literal["wall-clock", "tokens", "FLOPs", "device-hours"]
Kind = Literal["held-out", "training"]
AXES: tuple[Axis, ...] = ("wall-clock", "tokens", "FLOPs", "device-hours")
IN_LOOP = "eval/loss"


@dataclass(frozen=True)
class Curve:
    """Loss along an axis: arrays [points] with `x` increasing; empty if the axis was not measured."""

    x: Array
    y: Array

    def at(self, x: float) -> float | None:
        """Return the loss at `x`, linearly interpolated; None outside the curve."""
        if not len(self.x) or not self.x[0] <= x <= self.x[-1]:
            return None
        return float(np.interp(x, self.x, self.y))

    def reaches(self, loss: float) -> float | None:
        """Return the first `x` at which the loss is at most `loss`, linearly interpolated; None if it never is."""
        below = np.flatnonzero(self.y <= loss)
        if not len(below):
            return None
        after = int(below[0])
        if after == 0:
            return float(self.x[0])
        (x0, x1), (y0, y1) = self.x[after - 1 : after + 1], self.y[after - 1 : after + 1]
        return float(x0 + (x1 - x0) * (y0 - loss) / (y0 - y1))


def curve(run: RunData, kind: Kind, axis: Axis) -> Curve:
    """Return the held-out loss in the loop, or the training loss smoothed over 2 % of the steps."""
    if kind == "held-out":
        points = run.evaluations(IN_LOOP)
        seconds, tokens, loss = points["elapsed"], points["tokens"], points["value"]
    else:
        seconds = run.trace["elapsed"] + np.nan_to_num(run.trace["step_seconds"])
        tokens, loss = run.trace["tokens"], ema(run.trace["loss"], ema_horizon(run.steps))
    scale = {"wall-clock": 1.0, "tokens": 1.0, "FLOPs": run.get("flops_per_token"), "device-hours": _devices(run)}[axis]
    if not is_number(scale):
        return Curve(np.zeros(0), np.zeros(0))
    x = (seconds if axis in ("wall-clock", "device-hours") else tokens) * scale
    known = np.isfinite(loss) & np.isfinite(x)
    return Curve(x[known], loss[known])


def _devices(run: RunData) -> float | None:
    count = run.get("world_size")
    return count / 3600.0 if is_number(count) else None


def common_end(curves: Sequence[Curve]) -> float | None:
    """Return the last point that all curves cover; None if one is empty."""
    return min((float(one.x[-1]) for one in curves), default=None) if all(len(one.x) for one in curves) else None


AXIS_FORMATS: dict[Axis, Callable[[float], str]] = {
    "wall-clock": duration,
    "tokens": lambda tokens: f"{short_count(tokens)} tokens",
    "FLOPs": lambda flops: f"{flops:.3g} FLOPs",
    "device-hours": lambda hours: f"{hours:.3g} device-hours",
}


def bits_per_character(run: RunData) -> float | None:
    """Return the final held-out loss in bits, times tokens per character of the held-out text.

    Comparable between tokenizers, unlike the loss per token. Padding is not counted.
    """
    split: dict[str, Any] = run.get("data.splits.validation") or {}
    loss, tokens, characters = run.get("metrics.validation_loss"), split.get("tokens", 0), split.get("characters", 0)
    if not (is_number(loss) and is_number(tokens) and is_number(characters) and characters):
        return None
    return loss / float(np.log(2.0)) * (tokens - (split.get("padding_tokens") or 0)) / characters
