"""Recipes: YAML files with a card and values, and checks of which recipes can be combined."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cram_composer.config.layers import flatten, read_yaml
from cram_composer.config.messages import config_error, did_you_mean, set_in
from cram_composer.config.paths import shared_dir
from cram_composer.config.schema.introspect import annotations_at, literals
from cram_composer.config.schema.model import HF_KEYS, ModelConfig
from cram_composer.config.schema.recipe import Card
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import ConfigError

KINDS = ("preset", "ingredient")


@dataclass(frozen=True)
class Recipe:
    """A recipe: its name, card and nested values."""

    name: str
    card: Card
    values: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """Values by dotted key."""
        return flatten(self.values)


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(path.stem for path in (shared_dir() / "recipes").glob("*.yaml"))


def load_recipe(name: str, source: str) -> Recipe:
    """Read recipe `name`, requested by the layer `source`. Raises ConfigError."""
    path = shared_dir() / "recipes" / f"{name}.yaml"
    if "/" in name or not path.is_file():
        hint = did_you_mean(name, recipe_names())
        raise ConfigError(f"recipes: no recipe '{name}'{hint} (list them with `cram recipes`){set_in(source)}")
    return Recipe(name, *_read(path))


def _read(path: Path) -> tuple[Card, dict[str, Any]]:
    values = read_yaml(path)
    header = values.pop("card", None)
    if not isinstance(header, dict):
        raise ConfigError(f"{path}: 'card' is missing or not a mapping; add it, as in any file in recipes/")
    try:
        return Card.model_validate(header), values
    except ValidationError as error:
        reason = config_error(error, Card, lambda keys: (keys[0], None))
        raise ConfigError(f"{path}: card.{reason}") from None


def check_compatible(recipes: list[Recipe], source: str) -> None:
    """Reject duplicates, missing requirements, and recipes that exclude or override each other. Raises ConfigError."""
    names = [recipe.name for recipe in recipes]
    for recipe in recipes:
        if names.count(recipe.name) > 1:
            raise ConfigError(f"recipes: '{recipe.name}' is named twice; remove one{set_in(source)}")
        for other in recipe.card.needs:
            if other not in names:
                raise ConfigError(
                    f"recipes: '{recipe.name}' needs '{other}'; add it before '{recipe.name}'{set_in(source)}"
                )
    for first, second in itertools.combinations(recipes, 2):
        reason = exclusion(first, second)
        if reason is not None:
            raise ConfigError(
                f"recipes: '{first.name}' and '{second.name}' exclude each other: {reason}; remove one{set_in(source)}"
            )
        if second.card.kind == "preset":
            raise ConfigError(
                f"recipes: '{second.name}' is a preset and would override '{first.name}'; put it first{set_in(source)}"
            )


def exclusion(first: Recipe, second: Recipe) -> str | None:
    """Return why two recipes cannot be combined in any order; None if they can."""
    declared = first.card.conflicts.get(second.name) or second.card.conflicts.get(first.name)
    if declared is not None:
        return declared
    if first.card.kind != second.card.kind:
        return None
    if first.card.kind == "preset":
        return "both are presets"
    mine, others = first.settings, second.settings
    clashing = sorted(key for key in mine.keys() & others.keys() if mine[key] != others[key])
    if not clashing:
        return None
    # Other keys differ because of a choice, such as the optimizer, so report the choice.
    choice = next((key for key in clashing if _is_choice(key)), None)
    key = choice or clashing[0]
    section, _, name = key.rpartition(".")
    what = f"choose the {section}" if name == "name" else f"choose {key}" if choice else f"set {key}"
    return f"both {what} ({mine[key]}, {others[key]})"


def _is_choice(dotted: str) -> bool:
    if dotted in ("optimizer.name", "schedule.name"):
        return True
    return any(literals(annotation) for annotation in annotations_at(RunConfig, dotted.split(".")))


def check_architecture(recipes: list[Recipe], model: ModelConfig) -> None:
    """Reject ingredients for CramBERT in a run of another architecture. Raises ConfigError."""
    if model.architecture == "crambert":
        return
    defaults = ModelConfig.model_fields
    for recipe in recipes:
        if recipe.card.kind != "ingredient":
            continue
        values = recipe.values.get("model", {})
        changed = [key for key, value in values.items() if key not in HF_KEYS and value != defaults[key].default]
        if changed:
            raise ConfigError(
                f"recipes: '{recipe.name}' sets model.{min(changed)}, which only CramBERT has, but this run trains "
                f"'{model.hf_name}' of transformers; remove it or set model.architecture=crambert"
            )
