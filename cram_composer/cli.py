"""The `cram` command. Subcommands import heavy libraries only after checking their arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from cram_composer.commands import (
    ablate,
    branch,
    compare,
    data,
    eval,
    explain,
    export,
    plan,
    recipes,
    report,
    reproduce,
    runs,
    scaling_law,
    schema,
    sweep,
    throughput,
)
from cram_composer.commands import train as train_command
from cram_composer.errors import CramError

_COMMANDS = (
    train_command,
    explain,
    recipes,
    schema,
    export,
    report,
    reproduce,
    data,
    plan,
    throughput,
    sweep,
    ablate,
    branch,
    eval,
    runs,
    compare,
    scaling_law,
)


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(options, "overrides") or any(item.startswith("-") for item in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides += rest  # overrides after an option, which argparse does not collect
    return _guarded(lambda: options.run(options))


def train(arguments: list[str]) -> int:
    """Entry point of train.py."""
    return main(["train", *arguments])


def _guarded(command: Callable[[], int]) -> int:
    """Run a command; a CramError becomes one line and status 2."""
    try:
        return command()
    except CramError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, as in `cram recipes | head`
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr, flush=True)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cram", description="How good a language model can one GPU train in one day?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
