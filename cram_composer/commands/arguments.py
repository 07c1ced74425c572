"""What subcommands are made of."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError

Commands = Any  # what argparse.ArgumentParser.add_subparsers returns; its type is private


def add_command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """A subcommand that calls `function`, which returns the exit status."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(function=function)
    return command


def add_yaml(parser: argparse.ArgumentParser) -> None:
    """A YAML file, and values over it."""
    parser.add_argument("yaml", type=Path, metavar="FILE.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as budget=6h recipes=[crammed-bert,ema]"
    )


def given(**values: object) -> list[str]:
    """The options that were given, as overrides key=value."""
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def exit_status(failures: list[str], says: str) -> int:
    """Print a line for every failure, then how many there are with what `says` of them; 1 if there are any."""
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} {says}, and only them", file=sys.stderr)
    return 1 if failures else 0


def slurm_parameters(items: list[str] | None) -> dict[str, object] | None:
    """submitit's parameters of the key=value items of --slurm; None where it was not given."""
    if items is None:
        return None
    found: dict[str, object] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise CramError(f"--slurm {item}: not key=value, such as slurm_partition=gpu timeout_min=600")
        found[key] = int(value) if value.isdigit() else value
    return found
