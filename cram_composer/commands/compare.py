"""`cram compare`: compare groups of runs."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, replace
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_page_or_json, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    compare = add_command(
        commands,
        "compare",
        run,
        "Compare groups of runs at equal budget, with confidence intervals.",
        ["cram compare base='runs/base-*' muon='runs/muon-*'", "cram compare runs/sweeps/own/* --baseline low --json"],
    )
    compare.add_argument(
        "groups",
        nargs="+",
        metavar="GROUP",
        help="NAME='runs/base-*', or run folders to group by configuration, ignoring the seed",
    )
    compare.add_argument("--baseline", metavar="NAME", help="group to compare the others with (default: the first)")
    compare.add_argument(
        "--curve",
        nargs="+",
        metavar="GROUP",
        help="the baseline at other budgets, to say how much less budget a difference is worth",
    )
    compare.add_argument(
        "--target",
        type=float,
        metavar="LOSS",
        help="test every group against a held-out loss to beat; one group suffices",
    )
    add_page_or_json(compare, "./compare.html")


def run(options: argparse.Namespace) -> int:
    """Print the comparison and write its page, or print JSON."""
    from cram_composer.analysis.compare.compare import choose_baseline, compare
    from cram_composer.analysis.compare.groups import read_groups
    from cram_composer.analysis.compare.looks import look
    from cram_composer.analysis.compare.page import write_comparison
    from cram_composer.analysis.compare.target import against_target
    from cram_composer.analysis.compare.text import as_json, console_text
    from cram_composer.analysis.compare.worth import worth

    groups = read_groups(options.groups)
    tests = [] if options.target is None else [against_target(group, options.target) for group in groups]
    if tests and len(groups) == 1 and not options.curve:
        if options.json:
            print_json({**as_json(groups, []), "targets": [asdict(test) for test in tests]})
        else:
            print("\n".join([*(f"note: {note}" for note in groups[0].notes), *map(str, tests)]))
        return 0
    baseline = choose_baseline(groups, options.baseline)
    pairs = compare(groups, baseline, look(groups, baseline))
    if options.curve:
        curve = [baseline, *read_groups(options.curve)]
        for pair in pairs:
            for line in pair.rules.refusals:
                print(f"--curve: {pair.challenger.name} is left out: {line}", file=sys.stderr)
        pairs = [p if p.rules.refusals else replace(p, worth=worth(p.challenger, curve)) for p in pairs]
    if options.json:
        print_json({**as_json(groups, pairs), "targets": [asdict(test) for test in tests]})
        return 0
    print(console_text(groups, pairs))
    print("".join(f"\n{test}" for test in tests), end="\n" * bool(tests))
    print(f"\npage: {write_comparison(groups, pairs, options.output or Path('compare.html'))}")
    return 0
