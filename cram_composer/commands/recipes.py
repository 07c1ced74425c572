"""`cram recipes`: list the recipes, or show their cards."""

from __future__ import annotations

import argparse

from cram_composer.commands.arguments import Commands, add_command, add_json, print_json
from cram_composer.config.recipes import KINDS, load_recipe, recipe_names
from cram_composer.errors import CramError
from cram_composer.reference.recipe_page import recipe_page


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    recipes = add_command(
        commands,
        "recipes",
        run,
        "List all recipes, or show the cards of the named ones.",
        ["cram recipes", "cram recipes muon ema"],
    )
    recipes.add_argument("names", nargs="*", metavar="RECIPE", help="recipes to show (default: list all)")
    either = recipes.add_mutually_exclusive_group()
    either.add_argument("--markdown", action="store_true", help="print docs/reference/recipes.md, all recipes")
    add_json(either)


def run(options: argparse.Namespace) -> int:
    """Print the cards of the named recipes, or a list or page of all of them."""
    if options.markdown and options.names:
        raise CramError("--markdown: prints all recipes; name none")
    if options.json:
        recipes = [load_recipe(name, "command line") for name in options.names or recipe_names()]
        print_json([{"name": r.name, **r.card.model_dump(), "settings": r.settings} for r in recipes])
    elif options.names:
        for name in options.names:
            _print_card(name)
    elif options.markdown:
        print(recipe_page([load_recipe(name, "recipes/") for name in recipe_names()]), end="")
    else:
        _print_list()
    return 0


def _print_list() -> None:
    recipes = [load_recipe(name, "recipes/") for name in recipe_names()]
    width = max(len(recipe.name) for recipe in recipes)
    for kind in KINDS:
        print(f"{kind}s:")
        for recipe in recipes:
            if recipe.card.kind == kind:
                print(f"  {recipe.name:<{width}}  {recipe.card.summary}")


def _print_card(name: str) -> None:
    card = load_recipe(name, "command line").card
    print(name)
    for label, value in card:
        items = [value] if isinstance(value, str) else value
        if isinstance(value, dict):
            items = [f"{other} ({reason})" for other, reason in value.items()]
        if items:
            print(f"  {label + ':':<10} {', '.join(items)}")
