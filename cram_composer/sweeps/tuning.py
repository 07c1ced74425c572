"""Tuning: every variant at its own best point of a grid, chosen on seeds that the verdict does not use.

With halvings, the worse half of the points is dropped after runs of a part of the budget (successive halving: Jamieson
and Talwalkar 2016, arXiv 1502.07943). Each is a whole run with a decay of its own, so a point is judged by its end.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

from cram_composer.config.schema.run import BudgetConfig
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.config.units import parse_duration
from cram_composer.errors import ConfigError
from cram_composer.sweeps.plan import Trial, expand_variants, point_name
from cram_composer.sweeps.progress import finished_record

Points = dict[str, list[dict[str, Any]]]  # values by dotted key to try, by name of the variant


def all_points(config: SweepConfig, asked_by: str) -> Points:
    """Return every point of `tune` for every variant. Raises ConfigError."""
    grid = [dict(zip(config.tune, values, strict=True)) for values in itertools.product(*config.tune.values())]
    if config.tune_halvings and len(grid) <= 2**config.tune_halvings:
        raise ConfigError(
            f"{asked_by}: tune_halvings: {config.tune_halvings} leave one of {len(grid)} points before the last runs; "
            "lower it or list more values under tune"
        )
    if config.tune_halvings and (limits := [key for key in config.tune if key.partition(".")[0] == "budget"]):
        raise ConfigError(f"{asked_by}: tune: {limits[0]} cannot be tuned with tune_halvings, which change the budget")
    return {name: list(grid) for name, _ in expand_variants(config, asked_by)}


def tuning_sweep(
    config: SweepConfig, asked_by: str, points: Points, budgets: dict[str, BudgetConfig], halvings: int
) -> SweepConfig:
    """Return the sweep of every variant at its points, with `tune_seeds` seeds.

    Args:
        config: the sweep.
        asked_by: its file, named in errors.
        points: to try.
        budgets: of a run of the sweep, by name of the variant.
        halvings: how often the points will still be halved; 0: runs of the whole budget.

    Raises:
        ConfigError: a budget that cannot be divided.
    """
    at_points = {}
    for name, variant in expand_variants(config, asked_by):
        values = variant.set
        if halvings:
            values = {key: value for key, value in values.items() if key.partition(".")[0] != "budget"}
            values["budget"] = _part(budgets[name], 0.5**halvings, asked_by).model_dump()
        for point in points[name]:
            at_points[point_name(name, point)] = variant.model_copy(update={"set": values | point})
    update: dict[str, Any] = {"tune": {}, "grid": {}, "tune_halvings": 0, "baseline": None, "stop_when_decided": False}
    update |= {"variants": at_points, "seeds": config.tune_seeds}
    return config.model_copy(update={**update, "name": f"{config.name}{tuning_suffix(halvings)}"})


def tuning_suffix(halvings: int) -> str:
    """Return the end of the names of a tuning sweep and of its folder, which no comparison of the sweep includes."""
    return f"-tune-{halvings}" if halvings else "-tune"


def _part(budget: BudgetConfig, share: float, asked_by: str) -> BudgetConfig:
    if budget.replay is not None:
        raise ConfigError(
            f"{asked_by}: tune_halvings: a replay has no shorter budget; set it to 0 or use another budget"
        )
    return BudgetConfig(
        wall=None if budget.wall is None else f"{share * parse_duration(budget.wall):.3f}s",
        device_hours=None if budget.device_hours is None else share * budget.device_hours,
        tokens=None if budget.tokens is None else share * budget.tokens,
        steps=None if budget.steps is None else max(1, round(share * budget.steps)),
        epochs=None if budget.epochs is None else share * budget.epochs,
    )


def mean_losses(trials: Sequence[Trial]) -> dict[str, float]:
    """Return the final held-out loss of finished runs by variant, averaged over seeds; infinite without a loss."""
    losses: dict[str, list[float]] = {}
    for trial in trials:
        record = finished_record(trial)
        assert record is not None
        loss = (record.get("metrics") or {}).get("validation_loss")
        losses.setdefault(trial.variant, []).append(float("inf") if loss is None else float(loss))
    return {name: statistics.fmean(found) for name, found in losses.items()}


def better_half(points: Points, losses: dict[str, float]) -> Points:
    """Return the better half of the points of every variant, rounded up, the best first."""

    def best(name: str, of_variant: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(of_variant, key=lambda point: losses[point_name(name, point)])[: (len(of_variant) + 1) // 2]

    return {name: best(name, of_variant) for name, of_variant in points.items()}


def tuned_sweep(
    config: SweepConfig, asked_by: str, points: Points, losses: dict[str, float]
) -> tuple[SweepConfig, list[str]]:
    """Return the sweep of every variant at its best point, with the seeds after those of tuning, and a line for each.

    Args:
        config: the sweep.
        asked_by: its file, named in errors.
        points: the last ones tried.
        losses: of those.
    """
    variants, lines = {}, []
    for name, variant in expand_variants(config, asked_by):
        chosen = min(points[name], key=lambda point: losses[point_name(name, point)])
        variants[name] = variant.model_copy(update={"set": variant.set | chosen})
        told = ", ".join(f"{key}={value}" for key, value in chosen.items())
        ends = [key for key, value in chosen.items() if _is_end(value, config.tune[key])]
        edge = f"; {' and '.join(ends)} at an end of the grid, so the best may lie beyond" if ends else ""
        loss = losses[point_name(name, chosen)]
        lines.append(f"tuned {name or 'the run'}: {told}, loss {loss:.4f} with {config.tune_seeds} seed(s){edge}")
    update: dict[str, Any] = {"variants": variants, "grid": {}, "tune": {}, "tune_halvings": 0}
    return config.model_copy(update={**update, "first_seed": config.first_seed + config.tune_seeds}), lines


def _is_end(value: Any, values: Sequence[Any]) -> bool:
    """Return True for the lowest or highest of three or more numbers."""
    numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    return len(numbers) == len(values) > 2 and value in (min(numbers), max(numbers))
