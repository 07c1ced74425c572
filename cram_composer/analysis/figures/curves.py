"""Curves of a trace: smoothing, thinning, throughput, and pauses without training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cram_composer.analysis.runs.run import Array, RunData

SLOW_STEP = 5.0  # times the median; longer steps may be shown as pauses
VISIBLE_SHARE = 0.005  # of the run's length; shorter pauses would be thinner than a line


@dataclass(frozen=True)
class Pause:
    """An interval of loop time without progress: `kind` is 'compile' or 'lost'; `start` and `end` in loop seconds."""

    kind: str
    start: float
    end: float


def ema(values: Array, horizon: float) -> Array:
    """Exponential moving average [n] with a mean age of `horizon` entries, bias-corrected, skipping NaN."""
    decay = 1.0 - 1.0 / max(horizon, 1.0)
    total = weight = 0.0
    smoothed = np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if np.isfinite(value):
            total = decay * total + (1.0 - decay) * value
            weight = decay * weight + (1.0 - decay)
        if weight:
            smoothed[index] = total / weight
    return smoothed


def ema_horizon(steps: int) -> int:
    """Smoothing horizon in steps: 2 % of the run, at least 5."""
    return max(5, round(steps / 50))


def thin(x: Array, y: Array, points: int) -> tuple[Array, Array]:
    """Reduce a line to `points` points, the lowest and highest of each interval, to keep spikes."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points // 2 + 1).astype(int)
    chosen: set[int] = set()
    for start, stop in pairwise(edges):
        chosen |= {int(start + np.argmin(y[start:stop])), int(start + np.argmax(y[start:stop]))}
    index = np.array(sorted(chosen))
    return x[index], y[index]


def step_corners(x: Array, y: Array, end: float) -> tuple[Array, Array]:
    """Corners of the step function with value y[i] from x[i] on, up to `end`, for drawing 'steps-post'."""
    finite = np.isfinite(y)
    x, y = x[finite], y[finite]
    if not len(x):
        return x, y
    corners = np.flatnonzero(np.concatenate([[True], np.diff(y) != 0]))
    return np.append(x[corners], end), np.append(y[corners], y[-1])


def throughput(run: RunData, bins: int) -> tuple[Array, Array, Array]:
    """Return tokens/s and data stall over equal intervals of loop time, including pauses.

    Returns:
        edges: [k + 1] loop seconds, k <= bins (at least three steps per interval).
        tokens_per_second: [k].
        stall: [k], share of the interval spent waiting for data; NaN from the first step without a measurement.
    """
    starts, tokens = run.trace["elapsed"], run.trace["tokens"]
    if not run.steps or run.end <= 0:
        return np.zeros(1), np.zeros(0), np.zeros(0)
    edges = np.linspace(0.0, run.end, min(bins, max(1, run.steps // 3)) + 1)
    width = edges[1] - edges[0]
    # Cumulative counts are known at both ends of every step and constant between steps.
    ends = np.minimum(starts + np.nan_to_num(run.trace["step_seconds"]), np.append(starts[1:], np.inf))
    times = np.stack([starts, ends], axis=1).ravel()
    fed = np.stack([np.append(0.0, tokens[:-1]), tokens], axis=1).ravel()
    waited = np.cumsum(run.trace["data_seconds"])
    waiting = np.stack([np.append(0.0, waited[:-1]), waited], axis=1).ravel()
    return edges, np.diff(np.interp(edges, times, fed)) / width, np.diff(np.interp(edges, times, waiting)) / width


def pauses(run: RunData) -> list[Pause]:
    """Return the pauses to shade: time lost to a kill (before a later attempt's first step) and compilation.

    A step counts as compilation if the ledger has compile time, the step is far slower than the others, and it is the
    first of an attempt or the first at a new shape.
    """
    if run.steps < 2:
        return []
    trace = run.trace
    steps, starts = trace["step"], trace["elapsed"]
    spans = np.diff(np.append(starts, run.end))
    typical, visible = float(np.median(spans)), VISIBLE_SHARE * run.end
    resumed = {attempt.get("started_at_step") for attempt in run.get("attempts") or []} - {0, None}

    found = []
    if starts[0] > visible:  # killed before the first checkpoint: restarted at step 0
        found.append(Pause("lost" if run.get("ledger.inside.lost") else "compile", 0.0, float(starts[0])))
    for index in range(run.steps):
        first = index == 0 or steps[index] in resumed
        reshaped = index > 0 and any(
            trace[shape][index] != trace[shape][index - 1] for shape in ("batch_size", "seq_length")
        )
        if index > 0 and first:
            stopped = float(starts[index - 1] + np.nan_to_num(trace["step_seconds"][index - 1]))
            found.append(Pause("lost", stopped, float(starts[index])))
        slow = spans[index] > max(SLOW_STEP * typical, visible)
        if slow and (first or reshaped) and run.get("ledger.inside.compile"):
            end = starts[index] + min(spans[index], np.nan_to_num(trace["step_seconds"][index], nan=spans[index]))
            found.append(Pause("compile", float(starts[index]), float(end)))
    return found
