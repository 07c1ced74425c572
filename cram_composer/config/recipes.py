"""Recipes: one idea each, a YAML of values under a header card that says what it is and what it needs."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cram_composer.config.paths import shared_dir
from cram_composer.errors import ConfigError


@dataclass(frozen=True)
class Card:
    """A recipe's header."""

    summary: str
    source: str
    expected: str
    cost: str
    needs: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Recipe:
    """A named card and the values it sets."""

    name: str
    card: Card
    values: dict[str, Any]


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(path.stem for path in (shared_dir() / "recipes").glob("*.yaml"))


def load_recipe(name: str, asked_by: str) -> Recipe:
    """Read recipe `name`; `asked_by` is the layer to blame if there is none."""
    path = shared_dir() / "recipes" / f"{name}.yaml"
    if "/" in name or not path.is_file():
        close = difflib.get_close_matches(name, recipe_names(), n=1, cutoff=0.0)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        raise ConfigError(f"{asked_by}: recipes: there is no recipe '{name}'{hint} (`cram recipes` lists them)")
    return Recipe(name, *_read(path))


def _read(path: Path) -> tuple[Card, dict[str, Any]]:
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    header = loaded.pop("card", None) if isinstance(loaded, dict) else None
    if not isinstance(loaded, dict) or not isinstance(header, dict):
        raise ConfigError(f"{path}: a recipe starts with a 'card' mapping (see any file in recipes/)")
    known = {f.name for f in fields(Card)}
    wanted = {"summary", "source", "expected", "cost"}
    if wanted - header.keys() or header.keys() - known:
        wrong = sorted(map(str, (wanted - header.keys()) | (header.keys() - known)))
        raise ConfigError(
            f"{path}: card: missing or unknown: {', '.join(wrong)}; a card has {', '.join(sorted(known))}"
        )
    return Card(**{str(key): value for key, value in header.items()}), {str(k): v for k, v in loaded.items()}


def check_compatible(recipes: list[Recipe], asked_by: str) -> None:
    """Refuse recipes that appear twice, lack one they need, or exclude each other."""
    names = [recipe.name for recipe in recipes]
    for recipe in recipes:
        if names.count(recipe.name) > 1:
            raise ConfigError(f"{asked_by}: recipes: '{recipe.name}' is named twice; a recipe counts once")
        for other in recipe.card.needs:
            if other not in names:
                raise ConfigError(
                    f"{asked_by}: recipes: '{recipe.name}' needs '{other}'; add it before '{recipe.name}'"
                )
        for other in recipe.card.conflicts:
            if other in names:
                raise ConfigError(f"{asked_by}: recipes: '{recipe.name}' and '{other}' exclude each other; drop one")
