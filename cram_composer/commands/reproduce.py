"""`cram reproduce`: write the YAML of a recorded run again."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    reproduce = add_command(
        commands, "reproduce", run, "Write the YAML of a recorded run, and list what has changed since."
    )
    reproduce.add_argument("record", type=Path, metavar="RECORD", help="run folder, or its record.json")
    reproduce.add_argument("--replay", action="store_true", help="replay its schedule step by step, without a clock")
    reproduce.add_argument("--output", type=Path, help="YAML file to write (default: NAME-again.yaml)")


def run(options: argparse.Namespace) -> int:
    """Write the YAML; print the differences and the command that trains it."""
    from cram_composer.runs.reproduce import reproduce

    made = reproduce(options.record, options.output, options.replay)
    for title, lines in (("configuration", made.config_differences), ("since then", made.environment_differences)):
        print("\n".join([f"{title}: {'the same' if not lines else ''}".rstrip(), *(f"  {line}" for line in lines)]))
    print(f"written: {made.path}\ntrain:   {made.command}")
    return 0
