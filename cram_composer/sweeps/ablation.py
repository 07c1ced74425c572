"""`cram ablate`: a run without each of its recipes in turn, as a sweep."""

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

WHOLE = "all"


def leave_one_out(run: str, overrides: Sequence[str], recipes: Sequence[str] | None = None) -> SweepConfig:
    """A sweep over a run whose variants leave out one recipe each; what needs that recipe goes with it.

    Args:
        run: run YAML.
        overrides: key=value over it, of every variant.
        recipes: those to leave out, each alone; by default all ingredients of the run.

    Raises:
        ConfigError: the run cannot be composed, or has not the recipes.
    """
    path = find_shared(Path(run))
    composed = compose(RunConfig, path, list(overrides))
    named = list(composed.plain["recipes"])
    cards = {name: load_recipe(name, run).card for name in named}
    chosen = list(recipes) if recipes else [name for name in named if cards[name].kind == "ingredient"]
    if not chosen:
        raise ConfigError(
            f"{run}: has no ingredients to leave out; name some, such as recipes=[crammed-bert,muon,rope]"
        )
    variants = {WHOLE: VariantConfig()}
    for name in chosen:
        if name not in named:
            raise ConfigError(f"--recipes: the run has no recipe '{name}'; it has {', '.join(named)}")
        gone: list[str] = []
        for other in named:  # what a recipe needs is named before it
            if other == name or set(gone) & set(cards[other].needs):
                gone.append(other)
        variants[f"without {' and '.join(gone)}"] = VariantConfig(without=gone)
    changed = dict(parse_override(item) for item in overrides)
    return SweepConfig(name=f"ablate-{path.stem}", run=str(path), baseline=WHOLE, set=changed, variants=variants)
