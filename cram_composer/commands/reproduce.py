"""`cram reproduce`: write the YAML that repeats a recorded run."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_json, print_json


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    reproduce = add_command(
        commands,
        "reproduce",
        run,
        "Write the YAML that repeats a recorded run, and list what has changed since.",
        ["cram reproduce runs/cram-cpu", "cram reproduce runs/cram-cpu/record.json --replay"],
    )
    reproduce.add_argument("record", type=Path, metavar="RECORD", help="run folder or its record.json")
    reproduce.add_argument("--replay", action="store_true", help="replay its schedule step by step, without a clock")
    reproduce.add_argument("--output", type=Path, metavar="FILE", help="YAML file to write (default: NAME-again.yaml)")
    add_json(reproduce)


def run(options: argparse.Namespace) -> int:
    """Write the YAML; print the differences and the command to train it."""
    from cram_composer.runs.reproduce import reproduce

    made = reproduce(options.record, options.output, options.replay)
    if options.json:
        print_json({**asdict(made), "path": str(made.path)})
        return 0
    for title, lines in (("configuration", made.config_differences), ("since then", made.environment_differences)):
        print("\n".join([f"{title}: {'the same' if not lines else ''}".rstrip(), *(f"  {line}" for line in lines)]))
    print(f"written: {made.path}\ntrain:   {made.command}")
    return 0
