"""`cram runs`: list runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_json, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    runs = add_command(
        commands,
        "runs",
        run,
        "List the runs in folders that match key=value filters.",
        ["cram runs", "cram runs runs/sweeps recipe=muon seed=1 --json"],
    )
    runs.add_argument(
        "items",
        nargs="*",
        metavar="DIR or key=value",
        help="folders (default: runs) and filters, such as recipe=muon seed=1",
    )
    add_json(runs)


def run(options: argparse.Namespace) -> int:
    """Print the table or JSON list of the matching runs."""
    from cram_composer.analysis.runs.table import list_runs, row, table

    runs, problems = list_runs(options.items, Path("runs"))
    if options.json:
        print_json([row(run) for run in runs])
    else:
        print(table(runs))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0
