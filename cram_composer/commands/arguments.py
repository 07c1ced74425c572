"""Parser and argument helpers shared by the subcommands."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cram_composer.config.messages import did_you_mean
from cram_composer.errors import CramError

Commands = Any  # the return type of argparse.ArgumentParser.add_subparsers is private


class _HelpFormatter(argparse.HelpFormatter):
    """Wrap one-line texts; keep the lines of longer ones, such as examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class CommandParser(argparse.ArgumentParser):
    """Argument parser whose help ends with examples and whose errors are one line with the nearest valid name."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        if examples:
            kwargs["epilog"] = "\n".join(["examples:", *(f"  {example}" for example in examples)])
        kwargs["formatter_class"] = lambda prog: _HelpFormatter(prog, max_help_position=28)
        super().__init__(*args, **kwargs)
        self.examples = list(examples)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line."""
        self.exit(2, f"error: {message} (see '{self.prog} --help')\n")

    def refuse(self, arguments: Sequence[str]) -> NoReturn:
        """Exit with an error about arguments that the parser does not know."""
        unknown = next((item for item in arguments if item.startswith("-")), None)
        if unknown is None:
            self.error(f"unexpected argument '{arguments[0]}'")
        name = unknown.partition("=")[0]
        known = [option for action in self._actions for option in action.option_strings]
        self.error(f"unknown option '{name}'{did_you_mean(name, known)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if isinstance(action, argparse._SubParsersAction):
            raise argparse.ArgumentError(None, f"unknown command '{value}'{did_you_mean(str(value), action.choices)}")
        raise argparse.ArgumentError(action, f"must be one of {', '.join(map(str, action.choices))}, got '{value}'")


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], help: str, examples: Sequence[str]
) -> argparse.ArgumentParser:
    """Add a subcommand that calls `run`, which returns the exit status; `examples` end its help."""
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=f"{help.rstrip('.').partition('. ')[0]}.", description=help, examples=examples
    )
    command.set_defaults(run=run, parser=command)
    return command


def add_yaml(parser: argparse.ArgumentParser, what: str = "run", example: str = "budget=6h recipes=[+ema]") -> None:
    """Add the arguments for a YAML file and overrides of its values."""
    parser.add_argument("yaml", type=Path, metavar="FILE.yaml", help=f"{what} YAML, such as one of yamls/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key=value", help=f"values to override, such as {example}"
    )


def add_json(parser: argparse._ActionsContainer) -> None:
    """Add the option to print the result as JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON on stdout")


def add_page_or_json(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the options to name the page to write, and to print JSON instead."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--output", type=Path, metavar="FILE", help=f"HTML page (default: {default})")
    either.add_argument("--json", action="store_true", help="print JSON on stdout; write no page")


def at_least_one(text: str) -> int:
    """Convert an argument to an integer. Raises ArgumentTypeError below 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got '{text}'")
    return value


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


@contextlib.contextmanager
def messages_to_stderr(enabled: bool) -> Iterator[None]:
    """Print everything to stderr in this context, so that stdout holds nothing but the JSON printed afterwards."""
    with contextlib.redirect_stdout(sys.stderr) if enabled else contextlib.nullcontext():
        yield


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
