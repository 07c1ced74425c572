"""`cram branch`: branch a learning-rate decay off a constant-rate run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    branch = add_command(
        commands, "branch", run, "Branch a learning-rate decay off a checkpoint of a constant-rate run."
    )
    branch.add_argument("run_folder", type=Path, metavar="RUN", help="run folder, trained with checkpoint.branch_at")
    branch.add_argument("--at", required=True, metavar="TIME", help="where to branch: 2h, or tokens or steps")
    branch.add_argument(
        "--budget", required=True, metavar="TIME", help="budget of the branch, counted from the start of the run"
    )
    branch.add_argument("--name", help="name of the branch's folder, beside RUN (default: RUN-BUDGET)")
    branch.add_argument("--decay-shape", default="1-sqrt", choices=("1-sqrt", "linear"))
    branch.add_argument("--prepare", action="store_true", help="make the folder, and print the command that trains it")


def run(options: argparse.Namespace) -> int:
    """Make the branch and train it, or print the command that does."""
    from cram_composer.runs.branch import BRANCH_YAML, create_branch
    from cram_composer.train.launch import start

    made = create_branch(
        options.run_folder, options.at, options.budget, name=options.name, decay_shape=options.decay_shape
    )
    print(f"{made.path}: from {made.origin}", flush=True)
    if options.prepare or made.devices > 1:
        count = f"-n {made.devices} " if made.devices > 1 else ""
        print(f"train: composer {count}train.py {made.path / BRANCH_YAML}")
        return 0
    return start(made.composed, made.path)
