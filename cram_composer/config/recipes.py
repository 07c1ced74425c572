"""Recipes: one idea each, a YAML of values under a header card that says what it is and what it needs."""

from __future__ import annotations

import difflib
import itertools
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cram_composer.config.paths import shared_dir
from cram_composer.errors import ConfigError

KINDS = ("preset", "ingredient")


@dataclass(frozen=True)
class Card:
    """A recipe's header.

    A `preset` is a whole published set-up and comes first; an `ingredient` changes one thing. `conflicts` says by the
    name of another recipe why the two exclude each other, beyond setting the same key. `measured` is what this project
    has seen of it, with how many seeds, or that nothing has been.
    """

    kind: str
    summary: str
    source: str
    expected: str
    measured: str
    cost: str
    needs: list[str] = field(default_factory=list)
    conflicts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A named card and the values it sets, nested and by dotted key."""

    name: str
    card: Card
    values: dict[str, Any]

    @property
    def leaves(self) -> dict[str, Any]:
        """What it sets, by dotted key."""
        return leaves(self.values)


def leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of everything that is not a non-empty mapping; a list is one value."""
    if isinstance(value, dict) and (value or not prefix):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= leaves(item, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: value}


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
    wanted = known - {"needs", "conflicts"}
    if wanted - header.keys() or header.keys() - known:
        wrong = sorted(map(str, (wanted - header.keys()) | (header.keys() - known)))
        raise ConfigError(
            f"{path}: card: missing or unknown: {', '.join(wrong)}; a card has {', '.join(sorted(known))}"
        )
    if header["kind"] not in KINDS:
        raise ConfigError(f"{path}: card: kind is '{header['kind']}'; it must be one of {', '.join(KINDS)}")
    return Card(**{str(key): value for key, value in header.items()}), {str(k): v for k, v in loaded.items()}


def check_compatible(recipes: list[Recipe], asked_by: str) -> None:
    """Refuse recipes named twice, without one they need, or that exclude or undo each other. Raises ConfigError."""
    names = [recipe.name for recipe in recipes]
    for recipe in recipes:
        if names.count(recipe.name) > 1:
            raise ConfigError(f"{asked_by}: recipes: '{recipe.name}' is named twice; a recipe counts once")
        for other in recipe.card.needs:
            if other not in names:
                raise ConfigError(
                    f"{asked_by}: recipes: '{recipe.name}' needs '{other}'; add it before '{recipe.name}'"
                )
    for first, second in itertools.combinations(recipes, 2):
        reason = exclusion(first, second)
        if reason is not None:
            raise ConfigError(
                f"{asked_by}: recipes: '{first.name}' and '{second.name}' exclude each other: {reason}; drop one"
            )
        if second.card.kind == "preset":
            raise ConfigError(
                f"{asked_by}: recipes: '{second.name}' is a whole set-up and would undo '{first.name}'; name it first"
            )


def exclusion(first: Recipe, second: Recipe) -> str | None:
    """Why two recipes cannot be mixed in any order; None if they can."""
    declared = first.card.conflicts.get(second.name) or second.card.conflicts.get(first.name)
    if declared is not None:
        return declared
    if first.card.kind == second.card.kind == "preset":
        return "each is a whole set-up"
    if first.card.kind == second.card.kind:
        mine, others = first.leaves, second.leaves
        for key in sorted(mine.keys() & others.keys()):
            if mine[key] != others[key]:
                return f"{key} is {mine[key]} in one and {others[key]} in the other"
    return None


def check_used(recipes: list[Recipe], plain: dict[str, Any], asked_by: str) -> None:
    """Refuse ingredients that change CramBERT in a run that trains another architecture. Raises ConfigError."""
    model = plain["model"]
    if model["architecture"] == "crambert":
        return
    for recipe in recipes:
        changed = recipe.values.get("model", {}).keys() - {"architecture"} if recipe.card.kind == "ingredient" else ()
        if changed:
            raise ConfigError(
                f"{asked_by}: recipes: '{recipe.name}' sets model.{min(changed)}, which only CramBERT has, and this "
                f"run trains '{model['hf_name']}' of transformers; drop it or set model.architecture=crambert"
            )
