"""`cram completion`: the completion script of a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from cram_composer.commands.arguments import Commands, add_command
from cram_composer.config.recipes import recipe_names


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    completion = add_command(
        commands,
        "completion",
        run,
        "Print a shell script that completes subcommands, options, YAML files and recipes.",
        ['eval "$(cram completion bash)"', "cram completion zsh"],
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="shell to complete in")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    by_metavar = {
        "FILE.yaml": shtab.glob("*.yaml", "*.yml"),
        "RECIPE": shtab.cmd(f"echo {' '.join(recipe_names())}"),
        "NAME or FILE.yaml": shtab.glob("*.yaml", "*.yml"),
        "RUN": shtab.DIRECTORY,
        "DIR": shtab.DIRECTORY,
        "DIR or key=value": shtab.DIRECTORY,
        **dict.fromkeys(("FILE", "PATH", "MODEL", "RECORD"), shtab.FILE),
    }
    for action in _actions(options.root_parser):
        if action.metavar in by_metavar:
            action.complete = by_metavar[action.metavar]
    print(shtab.complete(options.root_parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[Any]:
    """Yield the arguments of a parser and of its subcommands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
