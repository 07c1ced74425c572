"""`cram ablate`: train a run without each of its recipes and compare."""

from __future__ import annotations

import argparse

from cram_composer.commands.arguments import Commands, add_command, add_yaml, overrides_from
from cram_composer.commands.sweep_options import add_sweep_options, run_sweep


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    ablate = add_command(
        commands,
        "ablate",
        run,
        "Train a run without each of its recipes in turn, and compare the results.",
        ["cram ablate yamls/cram-cpu.yaml recipes=[+rope,+muon] --budget 3m --seeds 4"],
    )
    add_yaml(ablate)
    ablate.add_argument("--recipes", metavar="A,B", help="recipes to leave out, each alone (default: all ingredients)")
    add_sweep_options(ablate)


def run(options: argparse.Namespace) -> int:
    """Make the leave-one-out sweep and run it."""
    from cram_composer.sweeps.ablation import leave_one_out

    recipes = options.recipes.split(",") if options.recipes else None
    overrides = [*options.overrides, *overrides_from(budget=options.budget)]
    sweep = leave_one_out(str(options.yaml), overrides, recipes)
    if options.seeds is not None:
        sweep.seeds = options.seeds
    return run_sweep(sweep, str(options.yaml), options)
