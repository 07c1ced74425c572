"""The schema of a sweep, `yamls/sweeps/*.yaml`: variants of one run, each trained with several seeds."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from cram_composer.config.schema.base import Name, Settings, key
from cram_composer.config.schema.run import BudgetConfig


class VariantConfig(Settings):
    """How a variant differs from the base run."""

    set: dict[str, Any] = key(dict, "values by dotted key of a run")
    add: list[str] = key(list, "recipes to add to those of the run")
    without: list[str] = key(list, "recipes of the run to leave out")


class SweepConfig(Settings):
    """A list of variants, a grid of values, or both: every variant at every point of the grid."""

    name: Name = key("", "folder in runs/sweeps; default: name of the file")
    run: str = key("yamls/cram-1gpu.yaml", "YAML of the base run")
    budget: BudgetConfig = key(BudgetConfig, "budget of every run; default: that of `run`")
    seeds: PositiveInt = key(3, "seeds per variant, from 1", le=1000)
    baseline: str | None = key(None, "variant to compare the others with; null: the first")
    set: dict[str, Any] = key(dict, "values of every variant, by dotted key")
    variants: dict[str, VariantConfig] = key(dict, "variants by name")
    grid: dict[str, list[Any]] = key(dict, "values to try, by dotted key of a run")
