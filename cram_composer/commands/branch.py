"""`cram branch`: branch a learning-rate decay off a constant-rate run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command
from cram_composer.commands.derived import add_prepare, train_or_say_how


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    branch = add_command(
        commands,
        "branch",
        run,
        "Branch a learning-rate decay off a checkpoint of a constant-rate run.",
        ["cram branch runs/constant --at 6h --budget 8h", "cram branch runs/constant --at 2h --budget 3h --prepare"],
    )
    branch.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a run with checkpoint.branch_at")
    branch.add_argument(
        "--at", required=True, metavar="TIME", help="where to branch: a time such as 2h, tokens, steps or epochs"
    )
    branch.add_argument(
        "--budget", required=True, metavar="TIME", help="budget of the branch, counted from the start of the run"
    )
    branch.add_argument("--name", metavar="NAME", help="name of the new folder beside RUN (default: RUN-BUDGET)")
    branch.add_argument(
        "--decay-shape", default="1-sqrt", choices=("1-sqrt", "linear"), help="shape of the decay (default: 1-sqrt)"
    )
    add_prepare(branch)


def run(options: argparse.Namespace) -> int:
    """Create the branch and train it, or print the command to train it."""
    from cram_composer.runs.branch import create_branch

    made = create_branch(
        options.run_folder, options.at, options.budget, name=options.name, decay_shape=options.decay_shape
    )
    return train_or_say_how(made, options.prepare)
