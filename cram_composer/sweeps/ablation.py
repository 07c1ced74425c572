"""`cram ablate`: the sweep that trains a run without each of its recipes in turn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cram_composer.config import compose
from cram_composer.config.layers import parse_override
from cram_composer.config.paths import find_shared
from cram_composer.config.recipes import load_recipe
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.sweep import SweepConfig, VariantConfig
from cram_composer.errors import ConfigError

ALL = "all"


def leave_one_out(run: str, overrides: Sequence[str], recipes: Sequence[str] | None = None) -> SweepConfig:
    """Plan a sweep whose variants each leave out one recipe of a run, and the recipes that need it.

    Args:
        run: run YAML.
        overrides: key=value overrides for every variant.
        recipes: recipes to leave out, each alone; default: all ingredients of the run.

    Raises:
        ConfigError: the run cannot be composed, or does not have the recipes.
    """
    path = find_shared(Path(run))
    composed = compose(RunConfig, path, list(overrides))
    present = list(composed.plain["recipes"])
    cards = {name: load_recipe(name, run).card for name in present}
    chosen = list(recipes) if recipes else [name for name in present if cards[name].kind == "ingredient"]
    if not chosen:
        raise ConfigError(
            f"{run}: recipes: no ingredients to leave out; add some, such as recipes=[crammed-bert,muon,rope]"
        )
    variants = {ALL: VariantConfig()}
    for name in chosen:
        if name not in present:
            raise ConfigError(f"--recipes: '{name}' is not a recipe of the run, which has {', '.join(present)}")
        left_out: list[str] = []
        for other in present:  # recipes come after those that they need
            if other == name or set(left_out) & set(cards[other].needs):
                left_out.append(other)
        variants[f"without {' and '.join(left_out)}"] = VariantConfig(without=left_out)
    shared = dict(parse_override(item) for item in overrides)
    return SweepConfig(name=f"ablate-{path.stem}", run=str(path), baseline=ALL, set=shared, variants=variants)
