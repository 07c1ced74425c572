"""Argument helpers shared by the subcommands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError

Commands = Any  # the return type of argparse.ArgumentParser.add_subparsers is private


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], help: str
) -> argparse.ArgumentParser:
    """Add a subcommand that calls `run`, which returns the exit status."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    command.set_defaults(run=run)
    return command


def add_yaml(parser: argparse.ArgumentParser, example: str = "budget=6h recipes=[crammed-bert,ema]") -> None:
    """Add the arguments for a YAML file and overrides of its values."""
    parser.add_argument("yaml", type=Path, metavar="FILE.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {example}")


def overrides_from(**values: object) -> list[str]:
    """Overrides key=value for the options that are not None."""
    return [f"{key}={value}" for key, value in values.items() if value is not None]


def exit_status(failures: list[str], summary: str) -> int:
    """Print every failure and their number followed by `summary`; return 1 if there are any, else 0."""
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} {summary}", file=sys.stderr)
    return 1 if failures else 0


def slurm_parameters(items: list[str] | None) -> dict[str, object] | None:
    """Parse the key=value items of --slurm into submitit parameters; None if the option is absent."""
    if items is None:
        return None
    parameters: dict[str, object] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise CramError(f"--slurm {item}: expected key=value, such as slurm_partition=gpu timeout_min=600")
        parameters[key] = int(value) if value.isdigit() else value
    return parameters
