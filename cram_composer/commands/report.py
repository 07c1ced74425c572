"""`cram report`: write the HTML report of runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    report = add_command(
        commands,
        "report",
        run,
        "Write the HTML report of one or more runs.",
        ["cram report runs/cram-cpu --follow", "cram report runs/base runs/muon --output both.html"],
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    report.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="HTML file (default: RUN/report.html; ./report.html for several runs)",
    )
    report.add_argument("--follow", action="store_true", help="write it every minute until the runs have ended")


def run(options: argparse.Namespace) -> int:
    """Write the report and print its path."""
    from cram_composer.analysis.report.report import follow_report, write_report

    if options.follow:
        follow_report(options.runs, options.output)
    else:
        print(write_report(options.runs, options.output))
    return 0
