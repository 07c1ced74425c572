"""`cram runs`, `compare` and `scaling`: reading what runs have left."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add them to the parser."""
    runs = add_command(commands, "runs", _runs, "List runs: those in folders, that key=value filters fit.")
    runs.add_argument("items", nargs="*", metavar="DIR or key=value", help="default: runs; such as recipe=muon seed=1")
    runs.add_argument("--json", action="store_true", help="print a JSON list")
    compare = add_command(
        commands, "compare", _compare, "Compare groups of runs at equal budget: is the difference real?"
    )
    compare.add_argument(
        "groups",
        nargs="+",
        metavar="GROUP",
        help="NAME='runs/base-*', or run folders, which are grouped by configuration without the seed",
    )
    compare.add_argument("--baseline", metavar="NAME", help="what the others are held against (default: the first)")
    compare.add_argument("--output", type=Path, help="HTML file of the page (default: ./compare.html)")
    compare.add_argument("--json", action="store_true", help="print JSON, and write no page")
    scaling = add_command(
        commands, "scaling", _scaling, "Fit loss = E + A/N^a + B/D^b to runs of several sizes and lengths."
    )
    scaling.add_argument("items", nargs="+", metavar="DIR or key=value", help="runs, as for `cram runs`")
    scaling.add_argument("--hold-back", type=int, default=0, metavar="N", help="predict the N largest runs instead")
    scaling.add_argument("--predict", metavar="N,D", help="loss at N parameters and D tokens, such as 1.2e8,3e9")
    scaling.add_argument("--budget", metavar="TIME", help="the best size for this wall-clock, such as 24h")
    scaling.add_argument(
        "--flops-per-second", type=float, metavar="F", help="model FLOP/s of the device (default: the runs' own speed)"
    )
    scaling.add_argument("--output", type=Path, help="HTML file of the page (default: ./scaling.html)")
    scaling.add_argument("--json", action="store_true", help="print JSON, and write no page")


def _runs(options: argparse.Namespace) -> int:
    from cram_composer.analysis.runs.table import list_runs, row, table

    runs, problems = list_runs(options.items, Path("runs"))
    print(json.dumps([row(run) for run in runs], indent=1, ensure_ascii=False) if options.json else table(runs))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from cram_composer.analysis.compare.compare import choose_baseline, compare
    from cram_composer.analysis.compare.groups import read_groups
    from cram_composer.analysis.compare.page import write_comparison
    from cram_composer.analysis.compare.text import as_json, console

    groups = read_groups(options.groups)
    pairs = compare(groups, choose_baseline(groups, options.baseline))
    if options.json:
        print(json.dumps(as_json(groups, pairs), indent=1, ensure_ascii=False))
        return 0
    print(console(groups, pairs))
    print(f"\npage: {write_comparison(groups, pairs, options.output or Path('compare.html'))}")
    return 0


def _scaling(options: argparse.Namespace) -> int:
    from cram_composer.analysis.scaling.command import scaling_command

    print(scaling_command(options))
    return 0
