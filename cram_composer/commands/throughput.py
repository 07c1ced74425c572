"""`cram throughput`: measure a run's speed on several numbers of devices."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_yaml
from cram_composer.errors import CramError


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    throughput = add_command(
        commands, "throughput", run, "Time short runs on several numbers of devices: does adding some pay off?"
    )
    add_yaml(throughput)
    throughput.add_argument("-n", "--sizes", default="1,2", metavar="N,N,...", help="numbers of devices (default: 1,2)")
    throughput.add_argument("--weak", action="store_true", help="keep the batch per device, instead of the total")
    throughput.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps per size (default: 20)")
    throughput.add_argument("--keep", type=Path, metavar="DIR", help="keep the run folders and logs here")
    throughput.add_argument("--json", type=Path, metavar="FILE", help="also write the results to a file")


def run(options: argparse.Namespace) -> int:
    """Measure every size and print the table."""
    from cram_composer.planning.throughput import measure_throughput

    numbers = _numbers(options.sizes)
    if options.steps < 4:
        raise CramError(f"--steps {options.steps}: must be >= 4, to tell a steady step from a slow one")
    return measure_throughput(
        options.yaml,
        options.overrides,
        numbers,
        steps=options.steps,
        weak=options.weak,
        keep=options.keep,
        json=options.json,
    )


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(item) for item in text.split(",")})
    except ValueError:
        raise CramError(f"-n {text}: expected numbers of devices separated by commas, such as 1,2,4") from None
    if numbers[0] < 1:
        raise CramError(f"-n {text}: must be >= 1")
    return numbers
