"""The recipe reference, docs/reference/recipes.md, generated from the cards of all recipes."""

from __future__ import annotations

from collections.abc import Sequence

from cram_composer.config.recipes import Recipe, exclusion

_HEAD = """# Recipes

Generated from the cards in `recipes/` by `cram recipes --markdown > docs/reference/recipes.md`; edit the cards, not this page.

A run names one preset and any number of ingredients, in order: `recipes=[crammed-bert,rope,mask-schedule]`. A preset
is a complete published set-up; an ingredient changes one thing. Ingredients named on the command line override the
values of the run's YAML; presets and recipes named in the YAML do not. `cram explain RUN.yaml recipes=[...]` shows the
source of every value. If recipes need or exclude each other, the run reports it in one line before it starts.

Values in a YAML override its presets: with `yamls/cram-cpu.yaml`, every preset keeps that file's small model, peak
learning rate and batch. `yamls/cram-1gpu.yaml` leaves these to the preset.
"""


def recipe_page(recipes: Sequence[Recipe]) -> str:
    """Return the page in Markdown."""
    presets = [recipe for recipe in recipes if recipe.card.kind == "preset"]
    ingredients = [recipe for recipe in recipes if recipe.card.kind == "ingredient"]
    parts = [_HEAD, "## Presets\n"]
    parts += [_card(recipe, presets, sets=False) for recipe in presets]
    parts.append("## Ingredients\n")
    parts += [_card(recipe, ingredients, sets=True) for recipe in ingredients]
    return "\n".join(parts)


def _card(recipe: Recipe, others: Sequence[Recipe], sets: bool) -> str:
    card = recipe.card
    lines = [f"### {recipe.name}\n", f"{card.summary}\n"]
    facts = {
        "Source": card.source,
        "Expected": card.expected,
        "Measured here": card.measured,
        "Cost": card.cost,
        "Needs": ", ".join(f"`{name}`" for name in card.needs),
    }
    if sets:
        facts["Sets"] = ", ".join(
            f"`{key}={_value(value)}`" for key, value in recipe.settings.items() if value is not None
        )
        facts["Excludes"] = _excluded(recipe, others)
    lines += [f"- {name}: {value}" for name, value in facts.items() if value]
    return "\n".join(lines) + "\n"


def _excluded(recipe: Recipe, others: Sequence[Recipe]) -> str:
    found = [other.name for other in others if other is not recipe and exclusion(recipe, other) is not None]
    return ", ".join(f"`{name}`" for name in found)


def _value(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
