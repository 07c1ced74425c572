"""`cram extend`: train a finished run further with another budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    extend = add_command(
        commands,
        "extend",
        run,
        "Train a finished run further: a new run from its weights, whose learning rate warms up again.",
        ["cram extend runs/cram-1gpu --budget 36h", "cram extend runs/cram-1gpu --budget 36h --name longer --prepare"],
    )
    extend.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a finished run")
    extend.add_argument(
        "--budget", required=True, metavar="TIME", help="budget of the new run alone, such as 36h or {tokens: 1e9}"
    )
    extend.add_argument("--name", metavar="NAME", help="name of the new folder beside RUN (default: RUN-extended)")
    extend.add_argument("--prepare", action="store_true", help="create the folder and print the command to train it")


def run(options: argparse.Namespace) -> int:
    """Create the run and train it, or print the command to train it."""
    from cram_composer.runs.extend import EXTEND_YAML, create_extension
    from cram_composer.runs.reproduce import train_command
    from cram_composer.train.launch import start

    made = create_extension(options.run_folder, options.budget, name=options.name)
    print(f"{made.path}: from the weights of {options.run_folder}", flush=True)
    if options.prepare or made.devices > 1:
        print(f"train: {train_command(made.path / EXTEND_YAML, made.devices)}")
        return 0
    return start(made.composed, made.path)
