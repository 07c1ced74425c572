"""`cram explain`: print the final configuration of a run with the source of every value."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cram_composer.commands.arguments import Commands, add_command, add_json, add_yaml, at_least_one, print_json
from cram_composer.config import Composed, compose_run
from cram_composer.config.layers import differing_keys, flatten
from cram_composer.config.native_forms import export_class, native_form
from cram_composer.config.schema.run import RunConfig


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    explain = add_command(
        commands,
        "explain",
        run,
        "Print the final configuration of a run and the source of every value. Reports the same configuration errors "
        "as `cram train`.",
        [
            "cram explain yamls/cram-cpu.yaml recipes=[+muon]",
            "cram explain yamls/cram-cpu.yaml seed=3 --diff runs/cram-cpu",
        ],
    )
    add_yaml(explain)
    explain.add_argument(
        "-n", "--devices", type=at_least_one, default=1, metavar="N", help="number of devices to check for (default: 1)"
    )
    explain.add_argument(
        "--diff", type=Path, metavar="PATH", help="print only the differences from a run YAML or folder"
    )
    add_json(explain)


def run(options: argparse.Namespace) -> int:
    """Print every key with its value, source and replaced values, or the differences from another run."""
    composed = compose_run(options.yaml, options.overrides, options.devices)
    if options.diff is None:
        config: RunConfig = composed.config
        objective = composed.plain["objective"]
        values, as_class = _explained(composed), export_class(config.model, objective)
        if options.json:
            form, changes = native_form(config.model, objective)
            exported = {"native": not changes, "closest_class": form, "changes": changes}
            print_json({"config_hash": composed.hash, "values": values, "export": exported})
        else:
            print("\n".join([*_value_lines(values), "", f"hash   {composed.hash}", f"export {as_class}"]))
    else:
        differences = _differences(composed, options.diff, options.devices)
        if options.json:
            print_json(differences)
        else:
            print("\n".join(_difference_lines(differences, options.diff)))
    return 0


def _explained(composed: Composed[Any]) -> dict[str, dict[str, Any]]:
    """Return the value of every key, its source, and the values it replaced with their sources, newest first."""
    values = flatten(composed.plain)
    return {
        key: {
            "value": values[key],
            "source": source,
            "replaced": [
                {"value": value, "source": layer} for layer, value in reversed(composed.overridden.get(key, []))
            ],
        }
        for key, source in composed.provenance.items()
    }


def _value_lines(values: dict[str, dict[str, Any]]) -> Iterator[str]:
    width = max(map(len, values))
    for key, entry in values.items():
        others = "".join(f", over {other['value']!r} of {other['source']}" for other in entry["replaced"])
        yield f"{key:<{width}} = {entry['value']!r:<24} # {entry['source']}{others}"


def _differences(composed: Composed[Any], other: Path, devices: int) -> dict[str, dict[str, Any]]:
    """Return the keys whose values differ in `other`, a run YAML or a run folder: here and there, absent if not set."""
    if other.is_dir():
        from cram_composer.runs.folder import read_record

        there = flatten(read_record(other)["config"])
    else:
        there = flatten(compose_run(other, [], devices).plain)
    here = flatten(composed.plain)
    sides = {"here": here, "there": there}
    return {
        key: {name: values[key] for name, values in sides.items() if key in values}
        for key in differing_keys(here, there)
    }


def _difference_lines(differences: dict[str, dict[str, Any]], other: Path) -> Iterator[str]:
    width = max(map(len, differences), default=0)
    for key, entry in differences.items():
        here, there = (repr(entry[name]) if name in entry else "absent" for name in ("here", "there"))
        yield f"{key:<{width}}   {here}   {other}: {there}"
    if not differences:
        yield f"no differences from {other}"
