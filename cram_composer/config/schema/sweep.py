"""The schema of a sweep, `yamls/sweeps/*.yaml`: which variants of one run are trained, each with how many seeds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cram_composer.config.schema.fields import number
from cram_composer.config.schema.run import BudgetConfig


@dataclass
class VariantConfig:
    """In what a variant is not the run that the sweep is over."""

    set: dict[str, Any] = field(default_factory=dict)  # by dotted key of a run, as on its command line
    add: list[str] = field(default_factory=list)  # recipes over those of the run
    without: list[str] = field(default_factory=list)  # recipes of the run that are left out


@dataclass
class SweepConfig:
    """A list of variants, a grid of values, or both, in which case every variant is trained at every point."""

    name: str = ""  # of the folder in runs/sweeps; default: the file's
    run: str = "yamls/cram-1gpu.yaml"
    budget: BudgetConfig = field(default_factory=BudgetConfig)  # of every run; default: that of `run`
    seeds: int = number(3, 1)  # from 1
    baseline: str | None = None  # variant that the others are held against; default: the first
    set: dict[str, Any] = field(default_factory=dict)  # of every variant
    variants: dict[str, VariantConfig] = field(default_factory=dict)  # by name
    grid: dict[str, list[Any]] = field(default_factory=dict)  # by dotted key of a run: the values to try
