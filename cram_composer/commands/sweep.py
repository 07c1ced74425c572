"""`cram sweep`: train the variants of a sweep and compare them."""

from __future__ import annotations

import argparse

from cram_composer.commands.arguments import Commands, add_command, overrides_from
from cram_composer.commands.sweep_options import add_sweep_options, run_sweep


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    sweep = add_command(
        commands,
        "sweep",
        run,
        "Train the variants of a sweep with several seeds each, and compare the results.",
        [
            "cram sweep masking-rate --set run=yamls/cram-cpu.yaml --budget 3m",
            "cram sweep masking-rate --report --json",
        ],
    )
    sweep.add_argument("sweep", metavar="NAME or FILE.yaml", help="name of a file in yamls/sweeps, or a YAML file")
    sweep.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="key=value",
        help="values of the sweep to override, such as run=yamls/cram-cpu.yaml",
    )
    sweep.add_argument(
        "--design", choices=("plackett-burman", "fractional"), help="runs of the sweep's factors (default: the sweep's)"
    )
    add_sweep_options(sweep)


def run(options: argparse.Namespace) -> int:
    """Compose the sweep and run it."""
    from cram_composer.config import compose
    from cram_composer.config.paths import sweep_file
    from cram_composer.config.schema.sweep import SweepConfig

    overrides = [*options.set, *overrides_from(seeds=options.seeds, budget=options.budget, design=options.design)]
    config = compose(SweepConfig, sweep_file(options.sweep), overrides).config
    return run_sweep(config, options.sweep, options)
