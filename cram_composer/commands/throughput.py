"""`cram throughput`: measure the throughput of a run on several numbers of devices."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_json, add_yaml, messages_to_stderr, print_json
from cram_composer.errors import CramError


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    throughput = add_command(
        commands,
        "throughput",
        run,
        "Measure the throughput of a run on several numbers of devices.",
        ["cram throughput yamls/cram-8gpu.yaml -n 1,2,4,8", "cram throughput yamls/cram-cpu.yaml -n 1,2 --weak --json"],
    )
    add_yaml(throughput)
    throughput.add_argument("-n", "--sizes", default="1,2", metavar="N,N,...", help="numbers of devices (default: 1,2)")
    throughput.add_argument("--weak", action="store_true", help="fix the batch per device instead of the total batch")
    throughput.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps per size (default: 20)")
    throughput.add_argument("--keep", type=Path, metavar="DIR", help="keep the run folders and logs in this folder")
    add_json(throughput)


def run(options: argparse.Namespace) -> int:
    """Measure every number of devices and print the table."""
    from cram_composer.planning.throughput import measure_throughput

    numbers = _numbers(options.sizes)
    if options.steps < 4:
        raise CramError(f"--steps {options.steps}: must be >= 4, to tell a steady step from a slow one")
    with messages_to_stderr(options.json):
        measured = measure_throughput(
            options.yaml, options.overrides, numbers, steps=options.steps, weak=options.weak, keep=options.keep
        )
    if options.json:
        print_json(measured.as_json())
    else:
        print(measured.text(str(options.yaml)))
    for line in measured.warnings:
        print(f"warning: {line}", file=sys.stderr)
    return 1 if measured.failures else 0


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(item) for item in text.split(",")})
    except ValueError:
        raise CramError(f"-n {text}: expected numbers of devices separated by commas, such as 1,2,4") from None
    if numbers[0] < 1:
        raise CramError(f"-n {text}: must be >= 1")
    return numbers
