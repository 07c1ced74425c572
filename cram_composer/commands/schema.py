"""`cram schema`: the JSON Schema of a kind of YAML file, or the reference of all keys."""

from __future__ import annotations

import argparse

from cram_composer.commands.arguments import Commands, add_command
from cram_composer.errors import CramError
from cram_composer.reference.json_schema import KINDS, json_schema_text


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    schema = add_command(
        commands,
        "schema",
        run,
        "Print the JSON Schema of a kind of YAML file, for validation in editors.",
        ["cram schema run", "cram schema --markdown"],
    )
    either = schema.add_mutually_exclusive_group()
    either.add_argument("kind", nargs="?", choices=tuple(KINDS), help="kind of YAML file")
    either.add_argument(
        "--markdown", action="store_true", help="print the reference of all keys (docs/reference/configuration.md)"
    )


def run(options: argparse.Namespace) -> int:
    """Print the schema or the page."""
    if options.markdown:
        from cram_composer.reference.key_page import key_page

        print(key_page(), end="")
        return 0
    if options.kind is None:
        raise CramError(f"cram schema: name a kind of YAML file: {', '.join(KINDS)}; or --markdown for all keys")
    print(json_schema_text(options.kind), end="")
    return 0
