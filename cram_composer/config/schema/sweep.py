"""The schema of a sweep, `yamls/sweeps/*.yaml`: variants of one run, each trained with several seeds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from cram_composer.config.schema.base import Name, Settings, key
from cram_composer.config.schema.run import BudgetConfig


class VariantConfig(Settings):
    """How a variant differs from the base run."""

    set: dict[str, Any] = key(dict, "values by dotted key of a run")
    add: list[str] = key(list, "recipes to add to those of the run")
    without: list[str] = key(list, "recipes of the run to leave out")


class SweepConfig(Settings):
    """A list of variants, a grid of values, or both, every variant at every point of it; or a design of factors."""

    name: Name = key("", "folder in runs/sweeps; default: name of the file")
    run: str = key("yamls/cram-1gpu.yaml", "YAML of the base run")
    budget: BudgetConfig = key(BudgetConfig, "budget of every run; default: that of `run`")
    seeds: PositiveInt = key(3, "seeds per variant", le=1000)
    first_seed: PositiveInt = key(1, "the first of them; the others follow", le=2**31)
    stop_when_decided: bool = key(
        False, "look at the verdicts after every seed from the second on, and train no more seeds of decided variants"
    )
    warm_up_steps: NonNegativeInt = key(
        0,
        "steps that each variant first trains in a run of its own, which is deleted, so that the counted runs find "
        "compiled kernels in the cache; 0: none",
        le=10_000,
    )
    baseline: str | None = key(None, "variant to compare the others with; null: the first")
    set: dict[str, Any] = key(dict, "values of every variant, by dotted key")
    variants: dict[str, VariantConfig] = key(dict, "variants by name")
    grid: dict[str, list[Any]] = key(dict, "values to try, by dotted key of a run")
    tune: dict[str, list[Any]] = key(dict, "values by dotted key, of which each variant gets its best before it counts")
    tune_seeds: PositiveInt = key(1, "seeds to find the best with; the verdict uses the ones after them", le=1000)
    tune_halvings: NonNegativeInt = key(
        0,
        "times that the worse half of the values is dropped, each time after runs of half of the next ones' budget",
        le=16,
    )
    factors: dict[str, VariantConfig] = key(dict, "what is on or off in the runs of a design, by name; off: as the run")
    design: Literal["plackett-burman", "fractional"] = key(
        "plackett-burman",
        "runs of the factors: the fewest, with effects mixed with interactions of other pairs, or two for each factor",
    )

    @model_validator(mode="after")
    def _check_factors(self) -> SweepConfig:
        for name in ("variants", "grid", "baseline", "tune"):
            if self.factors and getattr(self, name):
                raise ValueError(f"{name}: excludes factors, of which a design makes the variants; remove one of them")
        if self.factors and self.stop_when_decided:
            raise ValueError("stop_when_decided: a design needs all of its runs; remove it")
        if self.tune and not (self.variants or self.grid):
            raise ValueError("tune: finds the best values of variants; list variants or a grid, or use grid instead")
        if not self.tune and "tune_seeds" in self.model_fields_set:
            raise ValueError("tune_seeds: has no effect without tune; list values under tune or remove tune_seeds")
        if not self.tune and self.tune_halvings:
            raise ValueError(
                "tune_halvings: has no effect without tune; list values under tune or remove tune_halvings"
            )
        if not self.factors and "design" in self.model_fields_set:
            raise ValueError("design: has no effect without factors; list factors or remove design")
        return self
