"""Planning of a sweep: every variant with every seed, composed and checked before any run starts."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cram_composer.budget.budget import build_budget
from cram_composer.config import Composed, compose
from cram_composer.config.compose import as_list, changed_recipes, parse_override, read_yaml
from cram_composer.config.paths import find_shared
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.sweep import SweepConfig, VariantConfig
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError
from cram_composer.sweeps.design import two_level_design

_RESERVED = {"seed", "run_name", "runs_dir"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True, eq=False)
class Trial:
    """One run of a sweep, compared and hashed by identity.

    Attributes:
        variant: name of the variant.
        seed: seed of the run.
        path: run folder.
        yaml: run YAML.
        overrides: key=value overrides of the YAML.
        composed: the resulting configuration.
    """

    variant: str
    seed: int
    path: Path
    yaml: Path
    overrides: list[str]
    composed: Composed

    @property
    def log(self) -> Path:
        """Log file of the run's output."""
        return self.path.with_name(f"{self.path.name}.log")

    @property
    def seconds(self) -> float | None:
        """Wall-clock budget on one device in seconds; None for a budget in tokens, steps or epochs."""
        return build_budget(self.composed.config.budget, world_size=1).limits.seconds


def plan_trials(sweep: SweepConfig, asked_by: str, folder: Path) -> list[Trial]:
    """Plan all runs of a sweep, ordered by seed so that an interrupted sweep can be compared.

    Args:
        sweep: configuration of the sweep.
        asked_by: file of the sweep, named in errors.
        folder: folder of the runs.

    Raises:
        ConfigError: no variants, an unknown baseline, or a variant that cannot be composed.
    """
    pairs = list(expand_variants(sweep, asked_by))
    variants = dict(pairs)
    if not variants:
        raise ConfigError(f"{asked_by}: nothing to train; list 'variants', a 'grid' of values or 'factors'")
    if len(variants) < len(pairs):
        names = [name for name, _ in pairs]
        raise ConfigError(f"{asked_by}: grid: variant '{max(names, key=names.count)}' occurs twice; remove one")
    own = [*sweep.factors.items(), *pairs]
    for name, values in [("the sweep", sweep.set), ("the grid", sweep.grid), *((n, v.set) for n, v in own)]:
        if reserved := _RESERVED & values.keys():
            raise ConfigError(f"{asked_by}: {name} sets {min(reserved)}, which the sweep sets itself; remove it")
    if sweep.baseline is not None and sweep.baseline not in variants:
        raise ConfigError(f"{asked_by}: baseline: must be one of {_listed(variants)}, got '{sweep.baseline}'")
    yaml = find_shared(Path(sweep.run))
    budget = sweep.budget.model_dump()
    # A budget of the sweep replaces every limit of the run's budget.
    shared = [*([override("budget", budget)] if any(budget.values()) else []), *_overrides(sweep.set)]
    folders = [_NOT_IN_NAMES.sub("-", name) for name in variants]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"{asked_by}: variants: two names give the same folder name, rename one: {_listed(folders)}")
    trials = []
    for seed, (name, variant) in itertools.product(seeds_of(sweep), variants.items()):
        where = f"{asked_by}: variant '{name}'"
        overrides = [*shared, *_overrides(variant.set)]
        if variant.add or variant.without:
            overrides.append(override("recipes", _recipes(overrides, yaml, variant, where)))
        run_name = f"{_NOT_IN_NAMES.sub('-', name)}-seed{seed}"
        overrides += [
            f"seed={seed}",
            f"run_name={run_name}",
            override("runs_dir", str(folder)),
            "logging.progress_bar=false",
        ]
        try:
            composed = compose(RunConfig, yaml, overrides)
            if composed.config.runs_remote is not None:  # runs of other sweeps may have the same names
                overrides.append(override("runs_remote", f"{composed.config.runs_remote}/{sweep.name}"))
                composed = compose(RunConfig, yaml, overrides)
            check_run(composed.config, world_size=1)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        trials.append(Trial(name, seed, folder / run_name, yaml, overrides, composed))
    return trials


def seeds_of(sweep: SweepConfig) -> range:
    """Return the seeds of every variant."""
    return range(sweep.first_seed, sweep.first_seed + sweep.seeds)


def baseline_name(sweep: SweepConfig, trials: Sequence[Trial]) -> str:
    """Return the name of the variant to compare the others with."""
    return sweep.baseline or trials[0].variant


def duplicate_variants(trials: Sequence[Trial]) -> list[str]:
    """Return a line for every variant with the same configuration as an earlier one."""
    seen: dict[str, str] = {}
    lines = []
    for trial in trials:
        if trial.seed != trials[0].seed:
            continue
        plain = {key: value for key, value in trial.composed.plain.items() if key not in ("run_name", "recipes")}
        key = json.dumps(plain, sort_keys=True, default=str)
        if key in seen:
            lines.append(
                f"{trial.variant}: has the same settings as {seen[key]}, because its changes are set elsewhere too; "
                f"see `cram explain {trial.yaml}`"
            )
        seen.setdefault(key, trial.variant)
    return lines


def expand_variants(sweep: SweepConfig, asked_by: str) -> Iterator[tuple[str, VariantConfig]]:
    """Yield the variants by name, each at every point of the grid. Raises ConfigError."""
    given = [("grid", *item) for item in sweep.grid.items()] + [("tune", *item) for item in sweep.tune.items()]
    for where, key, values in given:
        if not values:
            raise ConfigError(f"{asked_by}: {where}.{key}: must not be empty; list the values to try")
        if key in sweep.grid and key in sweep.tune:
            raise ConfigError(f"{asked_by}: {key}: is in grid and in tune; remove one of them")
        for name, variant in sweep.variants.items():
            if key in variant.set:
                raise ConfigError(f"{asked_by}: variant '{name}': set.{key}: is also in {where}; remove one of them")
    if sweep.factors:
        yield from _runs_of_design(sweep, asked_by)
    variants = dict(sweep.variants) or ({"": VariantConfig()} if sweep.grid else {})
    for (name, variant), chosen in itertools.product(variants.items(), itertools.product(*sweep.grid.values())):
        point = dict(zip(sweep.grid, chosen, strict=True))
        yield point_name(name, point), variant.model_copy(update={"set": {**point, **variant.set}})


def point_name(variant: str, point: dict[str, Any]) -> str:
    """Return the name of a variant at a point of the grid."""
    parts = [variant, *(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in point.items())]
    return " ".join(filter(None, parts))


def _runs_of_design(sweep: SweepConfig, asked_by: str) -> Iterator[tuple[str, VariantConfig]]:
    """Yield a variant for every run of the design, named by its number."""
    setter: dict[str, str] = {}
    for name, factor in sweep.factors.items():
        for key in factor.set:
            if key in setter:
                raise ConfigError(f"{asked_by}: factors: {setter[key]} and {name} both set {key}; make it one factor")
            setter[key] = name
    try:
        design = two_level_design(sweep.design, len(sweep.factors))
    except ConfigError as error:
        raise ConfigError(f"{asked_by}: {error}") from None
    for number, row in enumerate(design):
        yield (
            f"{number:02d}",
            merge_factors([f for f, sign in zip(sweep.factors.values(), row, strict=True) if sign > 0]),
        )


def merge_factors(factors: Sequence[VariantConfig]) -> VariantConfig:
    """Return the variant in which these factors are on."""
    merged = VariantConfig()
    for factor in factors:
        merged.set |= factor.set
        merged.add += factor.add
        merged.without += factor.without
    return merged


def _recipes(overrides: list[str], yaml: Path, variant: VariantConfig, where: str) -> list[str]:
    """Return the run's recipes with the variant's additions and removals."""
    in_file = read_yaml(yaml).get("recipes")
    named = [parse_override(item)[1] for item in overrides if item.startswith("recipes=")]
    recipes = list(as_list(changed_recipes(named[-1], in_file, str(yaml)) if named else in_file))
    for name in variant.without:
        if name not in recipes:
            raise ConfigError(f"{where}: without: '{name}' is not a recipe of the run, which has {_listed(recipes)}")
    return [*(name for name in recipes if name not in variant.without), *variant.add]


def _overrides(values: dict[str, Any]) -> list[str]:
    return [override(key, value) for key, value in values.items()]


def override(key: str, value: Any) -> str:
    """Write a key and its value as an override of the command line."""
    return f"{key}={json.dumps(value)}"  # JSON is YAML


def _short(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _listed(names: Any) -> str:
    return ", ".join(list(names)[:8]) or "none"
