"""`cram train`, `explain`, `recipes`, `export`, `report` and `reproduce`: a run from its YAML to its record."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cram_composer.budget.schedules import build_schedule
from cram_composer.commands.arguments import Commands, add_command, add_yaml
from cram_composer.config import Composed, compose
from cram_composer.config.paths import expand
from cram_composer.config.recipe_page import recipe_page
from cram_composer.config.recipes import KINDS, load_recipe, recipe_names
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run


def add(commands: Commands) -> None:
    """Add them to the parser."""
    run = add_command(commands, "train", _train, "Train a model; the same as `python train.py`.")
    add_yaml(run)
    explain = add_command(
        commands, "explain", _explain, "Print the final configuration and where every value came from."
    )
    add_yaml(explain)
    recipes = add_command(commands, "recipes", _recipes, "List the recipes, or show the cards of some.")
    recipes.add_argument("names", nargs="*", metavar="NAME")
    recipes.add_argument("--markdown", action="store_true", help="print docs/recipes.md")
    export = add_command(commands, "export", _export, "Write the Hugging Face folder of a run's newest checkpoint.")
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--output", type=Path, help="folder to write (default: RUN/export)")
    report = add_command(commands, "report", _report, "Draw the page of one run, or of several together.")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    report.add_argument("--output", type=Path, help="HTML file (default: RUN/report.html, ./report.html for several)")
    reproduce = add_command(
        commands, "reproduce", _reproduce, "Write the YAML of a recorded run, and say what has changed since."
    )
    reproduce.add_argument("run", type=Path, metavar="RECORD", help="run folder, or its record.json")
    reproduce.add_argument("--replay", action="store_true", help="its schedule step by step, without a clock")
    reproduce.add_argument("--output", type=Path, help="YAML file to write (default: NAME-again.yaml)")


def _train(options: argparse.Namespace) -> int:
    composed = compose(RunConfig, options.yaml, options.overrides)
    config: RunConfig = composed.config
    check_run(config, int(os.environ.get("WORLD_SIZE", "1")))
    build_schedule(config.schedule)  # refuses a key that the schedule does not read
    from cram_composer.train.launch import start

    return start(composed, expand(config.runs_dir) / (config.run_name or options.yaml.stem))


def _explain(options: argparse.Namespace) -> int:
    composed: Composed = compose(RunConfig, options.yaml, options.overrides)
    width = max(len(key) for key in composed.provenance)
    for key, source in composed.provenance.items():
        lost = "".join(f", over {value!r} of {layer}" for layer, value in reversed(composed.overridden.get(key, [])))
        print(f"{key:<{width}} = {_lookup(composed.plain, key)!r:<24} # {source}{lost}")
    print(f"\nhash {composed.hash}")
    return 0


def _lookup(plain: object, key: str) -> object:
    for name in key.split("."):
        assert isinstance(plain, dict)
        plain = plain[name]
    return plain


def _recipes(options: argparse.Namespace) -> int:
    if not options.names:
        recipes = [load_recipe(name, "recipes/") for name in recipe_names()]
        if options.markdown:
            print(recipe_page(recipes), end="")
            return 0
        width = max(len(recipe.name) for recipe in recipes)
        for kind in KINDS:
            print(f"{kind}s:")
            for recipe in recipes:
                if recipe.card.kind == kind:
                    print(f"  {recipe.name:<{width}}  {recipe.card.summary}")
        return 0
    for name in options.names:
        print(name)
        for label, value in vars(load_recipe(name, "command line").card).items():
            items = [value] if isinstance(value, str) else value
            if isinstance(value, dict):
                items = [f"{other} ({reason})" for other, reason in value.items()]
            if items:
                print(f"  {label + ':':<10} {', '.join(items)}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from cram_composer.train.export import export_run

    print(export_run(options.run, options.output))
    return 0


def _report(options: argparse.Namespace) -> int:
    from cram_composer.analysis.report.report import write_report

    print(write_report(options.runs, options.output))
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from cram_composer.runs.reproduce import reproduce

    made = reproduce(options.run, options.output, options.replay)
    for title, lines in (("configuration", made.configuration), ("since then", made.surroundings)):
        print("\n".join([f"{title}: {'the same' if not lines else ''}".rstrip(), *(f"  {line}" for line in lines)]))
    print(f"written: {made.path}\ntrain:   {made.command}")
    return 0
