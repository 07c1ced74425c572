"""`cram explain`: the final configuration of a run with the source of every value."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cram_composer.commands.arguments import Commands, add_command, add_yaml
from cram_composer.config import Composed, compose_run
from cram_composer.config.layers import flatten
from cram_composer.errors import CramError


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    explain = add_command(
        commands,
        "explain",
        run,
        "Print the final configuration and the source of every value; reject what `cram train` rejects before it "
        "looks at data and devices.",
    )
    add_yaml(explain)
    explain.add_argument("-n", "--devices", type=int, default=1, metavar="N", help="devices to check for (default: 1)")
    explain.add_argument("--diff", type=Path, metavar="OTHER", help="print only differences from this YAML or run")


def run(options: argparse.Namespace) -> int:
    """Print every key with its value, its source and the values it replaced; or the differences from another run."""
    if options.devices < 1:
        raise CramError(f"-n {options.devices}: must be >= 1")
    composed = compose_run(options.yaml, options.overrides, options.devices)
    lines = _explained(composed) if options.diff is None else _differences(composed, options.diff, options.devices)
    print("\n".join(lines))
    return 0


def _explained(composed: Composed[Any]) -> Iterator[str]:
    values, width = flatten(composed.plain), max(map(len, composed.provenance))
    for key, source in composed.provenance.items():
        replaced = reversed(composed.overridden.get(key, []))
        others = "".join(f", over {value!r} of {layer}" for layer, value in replaced)
        yield f"{key:<{width}} = {values[key]!r:<24} # {source}{others}"
    yield f"\nhash {composed.hash}"


def _differences(composed: Composed[Any], other: Path, devices: int) -> Iterator[str]:
    """Yield a line for every key whose value is another one in `other`, a run YAML or a run folder."""
    if other.is_dir():
        from cram_composer.runs.folder import read_record

        there = flatten(read_record(other)["config"])
    else:
        there = flatten(compose_run(other, [], devices).plain)
    here = flatten(composed.plain)
    keys = [key for key in dict.fromkeys([*here, *there]) if here.get(key, ...) != there.get(key, ...)]
    width = max(map(len, keys), default=0)
    for key in keys:
        mine, others = (repr(values[key]) if key in values else "absent" for values in (here, there))
        yield f"{key:<{width}}   {mine}   {other}: {others}"
    if not keys:
        yield f"no differences from {other}"
