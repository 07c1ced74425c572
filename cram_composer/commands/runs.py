"""`cram runs`: list runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    runs = add_command(commands, "runs", run, "List the runs in folders that match key=value filters.")
    runs.add_argument("items", nargs="*", metavar="DIR or key=value", help="default: runs; such as recipe=muon seed=1")
    runs.add_argument("--json", action="store_true", help="print a JSON list")


def run(options: argparse.Namespace) -> int:
    """Print the table or JSON list of the matching runs."""
    from cram_composer.analysis.runs.table import list_runs, row, table

    runs, problems = list_runs(options.items, Path("runs"))
    print(json.dumps([row(run) for run in runs], indent=1, ensure_ascii=False) if options.json else table(runs))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0
