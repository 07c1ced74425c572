"""The `cram` command. Subcommands import heavy libraries only after checking their arguments."""

from __future__ import annotations

import argparse
import errno
import getpass
import os
import sys
from collections.abc import Callable

from cram_composer.commands import (
    ablate,
    branch,
    compare,
    completion,
    data,
    demo,
    doctor,
    eval,
    explain,
    export,
    extend,
    plan,
    push,
    recipes,
    report,
    reproduce,
    runs,
    scaling_law,
    schema,
    status,
    sweep,
    throughput,
)
from cram_composer.commands import train as train_command
from cram_composer.commands.arguments import CommandParser
from cram_composer.commands.version import ShowVersion
from cram_composer.config.redaction import redact_text
from cram_composer.errors import CramError
from cram_composer.jobs.processes import quiet_libraries

_COMMANDS = (
    train_command,
    explain,
    recipes,
    schema,
    export,
    push,
    report,
    reproduce,
    data,
    doctor,
    plan,
    throughput,
    sweep,
    ablate,
    branch,
    extend,
    eval,
    demo,
    runs,
    status,
    compare,
    scaling_law,
    completion,
)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script."""
    options, rest = build_parser().parse_known_args(arguments)
    if rest:
        if not hasattr(options, "overrides") or any(item.startswith("-") for item in rest):
            options.parser.refuse(rest)
        options.overrides = [*options.overrides, *rest]  # overrides after an option, which argparse does not collect
    quiet_libraries()
    _name_user()
    return _guarded(lambda: options.run(options))


def train(arguments: list[str]) -> int:
    """Entry point of train.py."""
    return main(["train", *arguments])


def _name_user() -> None:
    """Give a user without an entry in passwd a name, as in many containers: torch names caches after the user."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # OSError from Python 3.13 on
        os.environ["USER"] = f"uid-{os.getuid()}"


def _guarded(command: Callable[[], int]) -> int:
    """Run a command; a CramError becomes one line and status 2."""
    try:
        return command()
    except CramError as error:
        print(f"error: {redact_text(str(error))}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has closed the pipe, as in `cram recipes | head`
        return 0
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.strerror = "the disk is full; free some space, then run the same command again"
        print(f"error: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr, flush=True)
        return 2


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `cram` with all subcommands."""
    parser = CommandParser(
        prog="cram",
        description="Train masked language models from scratch on a wall-clock budget, and compare them.",
        examples=["cram train yamls/cram-cpu.yaml budget=60s", "cram recipes"],
    )
    parser.add_argument("--version", action=ShowVersion, help="print the versions of cram-composer and its libraries")
    parser.set_defaults(root_parser=parser)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
