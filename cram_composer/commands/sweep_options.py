"""Options of `cram sweep` and `cram ablate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cram_composer.commands.arguments import (
    add_json,
    at_least_one,
    exit_status,
    messages_to_stderr,
    print_json,
    slurm_parameters,
)

if TYPE_CHECKING:
    from cram_composer.config.schema.sweep import SweepConfig


def add_sweep_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both commands take."""
    parser.add_argument(
        "--seeds", type=at_least_one, metavar="N", help="seeds per variant (default: the sweep's value, or 3)"
    )
    parser.add_argument("--budget", metavar="TIME", help="budget per run, such as 3h or {tokens: 1e9}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of the runs (default: runs/sweeps/NAME)")
    parser.add_argument(
        "--jobs", type=at_least_one, metavar="N", help="parallel runs (default: one per GPU, or one on a CPU)"
    )
    parser.add_argument(
        "--slurm", nargs="*", metavar="key=value", help="run as a Slurm array with these submitit parameters"
    )
    parser.add_argument("--yes", action="store_true", help="train without asking for confirmation")
    parser.add_argument("--report", action="store_true", help="compare the existing runs without training")
    add_json(parser)


def run_sweep(config: SweepConfig, source: str, options: argparse.Namespace) -> int:
    """Run a sweep read from `source`, print the comparison and return the exit status."""
    from cram_composer.sweeps.sweep import sweep

    config.name = config.name or Path(source).stem
    with messages_to_stderr(options.json):
        result = sweep(
            config,
            source,
            (options.output or Path("runs/sweeps") / config.name).expanduser(),
            jobs=options.jobs,
            slurm=slurm_parameters(options.slurm),
            confirmed=options.yes,
            train=not options.report,
        )
    if options.json:
        print_json(result.values)
    else:
        print(result.text)
    return exit_status(result.failures, "runs failed; run the same command to resume them")
