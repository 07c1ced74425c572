"""Scaling law of runs of several sizes and lengths, its predictions, and the best size for a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from cram_composer.analysis.runs.run import Array
from cram_composer.analysis.scaling.annealing import AnnealedLaw, Curve, fit_curves, with_schedule
from cram_composer.analysis.scaling.law import Fit, fit
from cram_composer.analysis.scaling.points import Point
from cram_composer.errors import CramError

SAME_SIZE = 0.02  # relative difference below which sizes and lengths count as equal
LEAST_LEVELS = 3  # sizes and lengths needed to determine the law
LEAST_LOSSES, LEAST_PLACES = 8, 5  # losses of all runs, and lengths so far at which they were measured


@dataclass(frozen=True)
class HeldBack:
    """A run that was not fitted, with its predicted loss and the 95 % interval for one run."""

    point: Point
    predicted: tuple[float, float, float]


@dataclass(frozen=True)
class Optimum:
    """Best size for a budget with its tokens, loss and intervals; `outside` means beyond the measured sizes."""

    parameters: tuple[float, float, float]
    tokens: float
    loss: tuple[float, float, float]
    outside: bool


@dataclass(frozen=True)
class Scaling:
    """Fitted laws.

    Attributes:
        points: the fitted runs.
        law: in parameters and tokens; None if there are too few sizes or lengths, which `missing` explains.
        compute: in FLOPs, fitted to the frontier; None if it has too few runs.
        frontier: names of the runs whose loss no other run reaches with as few FLOPs.
        held_back: runs excluded from the fit, with predictions by `law`, or by `compute` if there is no `law`.
        notes: caveats for the reader.
    """

    points: list[Point]
    law: Fit | None
    missing: str
    compute: Fit | None
    frontier: list[str]
    held_back: list[HeldBack]
    notes: list[str]


def fit_scaling(
    points: Sequence[Point], notes: Sequence[str] = (), hold_back: int = 0, needs_law: bool = True
) -> Scaling:
    """Fit the laws to all points except the `hold_back` largest by compute, which are predicted.

    Raises:
        CramError: too few runs for any law, if `needs_law`.
    """
    in_order = sorted(points, key=lambda point: point.parameters * point.tokens)
    used, kept_back = in_order[: len(in_order) - hold_back], in_order[len(in_order) - hold_back :]
    curves = [point.curve for point in used if point.curve is not None]
    missing = _too_few_losses(used, curves) if curves else _too_few(used)
    law = None
    if not missing and curves:
        sizes = [point.parameters for point in used]
        sized = _count_levels(sizes) > 1
        law = fit_curves(sizes, curves, sized)
        if len(used) <= (LEAST_LEVELS if sized else 1):
            notes = [*notes, "intervals do not include differences between runs, which take more runs to tell"]
    elif not missing:
        law = fit(_sizes_and_tokens(used), np.array([point.loss for point in used]))
    best = _frontier(used)
    compute = None
    if len(best) > 3:
        compute = fit(np.array([[point.flops] for point in best]), np.array([point.loss for point in best]))
    if law is None and compute is None and needs_law:
        more = f"provide runs of at least {LEAST_LEVELS} sizes with {LEAST_LEVELS} lengths each"
        if curves:
            more = "lower eval.interval, or provide more runs"
        raise CramError(f"{missing}; {more}, or at least four runs whose loss falls with compute")
    if law is not None:
        held = [HeldBack(point, _predict(law, used, point)) for point in kept_back]
    elif compute is not None:
        known = [point for point in kept_back if point.flops is not None]
        held = [HeldBack(point, compute.predict(np.array([point.flops]))) for point in known]
    else:
        held = []
    return Scaling(used, law, missing, compute, [point.name for point in best], held, list(notes))


def _sizes_and_tokens(points: Sequence[Point]) -> Array:
    return np.array([[point.parameters, point.tokens] for point in points], dtype=np.float64)


def _too_few(points: Sequence[Point]) -> str:
    sizes, lengths = (_count_levels([getattr(p, name) for p in points]) for name in ("parameters", "tokens"))
    if len(points) < 7 or sizes < LEAST_LEVELS or lengths < LEAST_LEVELS:
        return (
            f"{len(points)} runs of {sizes} sizes and {lengths} lengths are too few for a law in parameters and tokens"
        )
    return ""


def _too_few_losses(points: Sequence[Point], curves: Sequence[Curve]) -> str:
    losses, sizes = sum(len(curve.loss) for curve in curves), _count_levels([point.parameters for point in points])
    places = _count_levels(np.concatenate([curve.areas()[0] for curve in curves]))
    if losses < LEAST_LOSSES or places < LEAST_PLACES or 1 < sizes < LEAST_LEVELS:
        return (
            f"{losses} losses at {places} lengths of {sizes} sizes are too few for a law of losses since the peak of "
            f"the rate, which needs {LEAST_LOSSES} losses at {LEAST_PLACES} lengths, and one size or {LEAST_LEVELS}"
        )
    return ""


def _count_levels(values: Sequence[float] | Array) -> int:
    ordered = np.log(np.sort(np.array(values, dtype=np.float64)))
    return int(len(ordered) and 1 + (np.diff(ordered) > SAME_SIZE).sum())


def _frontier(points: Sequence[Point]) -> list[Point]:
    """Return the points whose loss no other point reaches with as many FLOPs or fewer, in order of FLOPs."""
    measured = sorted(((p.flops, p) for p in points if p.flops is not None), key=lambda pair: pair[0])
    levels: list[tuple[float, Point]] = []
    for flops, point in measured:
        if levels and np.log(flops / levels[-1][0]) <= SAME_SIZE:
            if point.loss < levels[-1][1].loss:
                levels[-1] = (levels[-1][0], point)
        else:
            levels.append((flops, point))
    best: list[Point] = []
    for _, point in levels:
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return best


def optimum(scaling: Scaling, seconds: float, flops_per_second: float | None = None) -> Optimum:
    """Return the size with the lowest predicted loss after `seconds` at the speed of the runs.

    Tokens per second are a power law of the size, fitted to the runs' measured speeds, or to `flops_per_second` over
    their FLOPs per token. The search covers a factor of one hundred beyond the measured sizes.

    Raises:
        CramError: no law, or missing speeds in the records.
    """
    law = scaling.law
    if law is None:
        raise CramError(f"cannot compute the best size: {scaling.missing}")
    if isinstance(law.law, AnnealedLaw) and not law.law.sized:
        raise CramError("cannot compute the best size: all runs have the same")
    sizes = np.array([point.parameters for point in scaling.points])
    speeds = [
        point.tokens_per_second
        if flops_per_second is None
        else flops_per_second / point.flops_per_token
        if point.flops_per_token
        else None
        for point in scaling.points
    ]
    if any(speed is None for speed in speeds):
        raise CramError("some records lack the speed of the run; use runs of this version of cram-composer")
    slope, level = np.polyfit(np.log(sizes), np.log(np.array(speeds, dtype=np.float64)), 1)
    grid = np.geomspace(sizes.min() / 100, sizes.max() * 100, 2001)
    x = np.stack([grid, np.exp(level + slope * np.log(grid)) * seconds], axis=1)
    place = int(law.law.loss(x).argmin())
    others = np.array([grid[one.loss(x).argmin()] for one in law.resampled])
    parameters = float(grid[place])
    return Optimum(
        (parameters, *law.interval(others)),
        float(x[place, 1]),
        law.predict(x[place]),
        not sizes.min() <= parameters <= sizes.max(),
    )


def predict(scaling: Scaling, parameters: float, tokens: float) -> tuple[float, float, float]:
    """Predict the loss of one run of this size and length with its 95 % interval. Raises CramError without a law."""
    if scaling.law is None:
        raise CramError(f"cannot predict a loss: {scaling.missing}")
    return _predict(scaling.law, scaling.points, Point("", parameters, tokens, np.nan, None, None))


def _predict(law: Fit, fitted: Sequence[Point], point: Point) -> tuple[float, float, float]:
    """Predict the loss of a point of its own schedule, or with that of the longest of the `fitted` ones."""
    size = fitted[0].parameters
    if isinstance(law.law, AnnealedLaw):
        if not law.law.sized and abs(np.log(point.parameters / size)) > SAME_SIZE:
            raise CramError(f"cannot predict a loss at {point.parameters:.4g} parameters: all runs have {size:.4g}")
        if point.curve is not None:
            law = with_schedule(law, point.curve.schedule)
    return law.predict(_sizes_and_tokens([point])[0])


def parameters_of(result: Fit, names: Sequence[str]) -> list[tuple[str, float, float, float]]:
    """Return (name, value, low, high) of E, the scales and the exponents; `names` are the variables of the terms."""
    laws = result.resampled
    rows = [("E", result.law.floor, *result.interval(np.array([law.floor for law in laws])))]
    for place, name in enumerate(names):
        scales, exponents = (np.array([getattr(law, key)[place] for law in laws]) for key in ("scales", "exponents"))
        rows.append((f"scale of {name}", float(result.law.scales[place]), *result.interval(scales)))
        rows.append((f"exponent of {name}", float(result.law.exponents[place]), *result.interval(exponents)))
    if result.law.annealing:
        annealing = np.array([law.annealing for law in laws])
        rows.append(("scale of annealing", result.law.annealing, *result.interval(annealing)))
    return rows


def law_variables(result: Fit) -> tuple[str, ...]:
    """Return the names of the variables of the law in sizes and lengths, without the annealing."""
    if not isinstance(result.law, AnnealedLaw):
        return ("parameters", "tokens")
    return ("parameters", "full-rate tokens") if result.law.sized else ("full-rate tokens",)


def optimal_exponent(result: Fit) -> tuple[float, float, float]:
    """Return the exponent with which the best size grows with compute, b / (a + b), with its 95 % interval."""
    pairs = np.array([law.exponents for law in [result.law, *result.resampled]])
    shares = pairs[:, 1] / pairs.sum(axis=1)
    return float(shares[0]), *result.interval(shares[1:])


def as_json(scaling: Scaling) -> dict[str, Any]:
    """Return the laws and the fitted runs as JSON values."""

    def values(result: Fit | None, names: Sequence[str]) -> dict[str, Any] | None:
        if result is None:
            return None
        rows = parameters_of(result, names)
        return {
            **{name: {"value": value, "interval": [low, high]} for name, value, low, high in rows},
            "residual_spread": result.spread,
        }

    def run(point: Point) -> dict[str, Any]:
        return {field.name: getattr(point, field.name) for field in fields(point) if field.name != "curve"}

    return {
        "points": [run(point) for point in scaling.points],
        "law": None if scaling.law is None else values(scaling.law, law_variables(scaling.law)),
        "compute": values(scaling.compute, ("FLOPs",)),
        "frontier": scaling.frontier,
        "held_back": [{**run(one.point), "predicted": list(one.predicted)} for one in scaling.held_back],
        "notes": [*scaling.notes, *[scaling.missing] * bool(scaling.missing)],
    }
