"""`cram status`: print the state of runs, one line each."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_json, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    status = add_command(
        commands,
        "status",
        run,
        "Print progress, loss, speed, time left and the last checkpoint of runs, one line each.",
        ["cram status runs/cram-cpu", "cram status runs/cram-cpu --json"],
    )
    status.add_argument("run_folders", nargs="+", type=Path, metavar="RUN", help="run folders")
    add_json(status)


def run(options: argparse.Namespace) -> int:
    """Print the line or the JSON list of the runs."""
    from cram_composer.analysis.runs.status import run_status, status_line

    found = {path: run_status(path) for path in options.run_folders}
    if options.json:
        print_json([{"run": str(path), **status} for path, status in found.items()])
    else:
        print("\n".join(status_line(path, status) for path, status in found.items()))
    return 0
