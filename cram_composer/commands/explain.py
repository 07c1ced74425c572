"""`cram explain`: the final configuration with the source of every value."""

from __future__ import annotations

import argparse

from cram_composer.commands.arguments import Commands, add_command, add_yaml
from cram_composer.config import Composed, compose
from cram_composer.config.schema.run import RunConfig


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    add_yaml(add_command(commands, "explain", run, "Print the final configuration and the source of every value."))


def run(options: argparse.Namespace) -> int:
    """Print every key with its value, its source and the values it replaced."""
    composed: Composed = compose(RunConfig, options.yaml, options.overrides)
    width = max(len(key) for key in composed.provenance)
    for key, source in composed.provenance.items():
        lost = "".join(f", over {value!r} of {layer}" for layer, value in reversed(composed.overridden.get(key, [])))
        print(f"{key:<{width}} = {_lookup(composed.plain, key)!r:<24} # {source}{lost}")
    print(f"\nhash {composed.hash}")
    return 0


def _lookup(plain: object, key: str) -> object:
    for name in key.split("."):
        assert isinstance(plain, dict)
        plain = plain[name]
    return plain
