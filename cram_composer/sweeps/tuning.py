"""Tuning: every variant at its own best point of a grid, chosen on seeds that the verdict does not use."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.sweeps.plan import Trial, expand_variants, point_name
from cram_composer.sweeps.progress import finished_record


def tuning_sweep(config: SweepConfig, asked_by: str) -> SweepConfig:
    """Return the sweep over `tune`: every variant at every point, with `tune_seeds` seeds. Raises ConfigError."""
    update: dict[str, Any] = {"tune": {}, "baseline": None, "stop_when_decided": False, "seeds": config.tune_seeds}
    update |= {"name": f"{config.name}-tune", "variants": dict(expand_variants(config, asked_by)), "grid": config.tune}
    return config.model_copy(update=update)


def tuned_sweep(config: SweepConfig, tuning: SweepConfig, trials: Sequence[Trial]) -> tuple[SweepConfig, list[str]]:
    """Return the sweep of every variant at its best point, with the seeds after those of tuning, and a line for each.

    Args:
        config: the sweep.
        tuning: its `tuning_sweep`.
        trials: the runs of that, all finished.
    """
    losses: dict[str, list[float]] = {}
    for trial in trials:
        record = finished_record(trial)
        assert record is not None
        loss = (record.get("metrics") or {}).get("validation_loss")
        losses.setdefault(trial.variant, []).append(float("inf") if loss is None else float(loss))
    variants, lines = {}, []
    for name, variant in tuning.variants.items():
        means = [(statistics.fmean(losses[point_name(name, point)]), point) for point in _points(config.tune)]
        loss, chosen = min(means, key=lambda found: found[0])
        variants[name] = variant.model_copy(update={"set": variant.set | chosen})
        told = ", ".join(f"{key}={value}" for key, value in chosen.items())
        ends = [key for key, value in chosen.items() if _is_end(value, config.tune[key])]
        edge = f"; {' and '.join(ends)} at an end of the grid, so the best may lie beyond" if ends else ""
        lines.append(f"tuned {name or 'the run'}: {told}, loss {loss:.4f} with {config.tune_seeds} seed(s){edge}")
    update = {"variants": variants, "grid": {}, "tune": {}, "first_seed": config.first_seed + config.tune_seeds}
    return config.model_copy(update=update), lines


def _points(grid: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _is_end(value: Any, values: Sequence[Any]) -> bool:
    """Return True for the lowest or highest of three or more numbers."""
    numbers = [one for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    return len(numbers) == len(values) > 2 and value in (min(numbers), max(numbers))
