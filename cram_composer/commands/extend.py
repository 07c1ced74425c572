"""`cram extend`: train a finished run further with another budget."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command
from cram_composer.commands.derived import add_prepare, train_or_say_how


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
    add_prepare(extend)


def run(options: argparse.Namespace) -> int:
    """Create the run and train it, or print the command to train it."""
    from cram_composer.runs.extend import create_extension

    return train_or_say_how(create_extension(options.run_folder, options.budget, name=options.name), options.prepare)
