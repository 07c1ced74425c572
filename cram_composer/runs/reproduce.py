"""`cram reproduce`: write a run YAML with the configuration of a record, and list what has changed since."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cram_composer.budget.trace import read_trace
from cram_composer.config.compose import Composed, compose
from cram_composer.config.layers import differing_keys, flatten, recorded_key, unflatten
from cram_composer.config.messages import shortened
from cram_composer.config.redaction import is_redacted
from cram_composer.config.schema.introspect import has_key
from cram_composer.config.schema.run import BudgetConfig, RunConfig
from cram_composer.errors import CramError
from cram_composer.runs.folder import RECORD, environment, read_record
from cram_composer.storage.files import write_atomic
from cram_composer.storage.paths import plain_name

_ABSENT = object()
_EARLY_STOP = "train.early_stop."
_REQUIRED_KEYS = {"run_name", "status", "config", "provenance", "config_hash", "world_size", "environment", "data"}
_CHANGED_KEYS = ("run_name",)  # changed on purpose
_COMMANDS = ("notify",)  # a record may be somebody else's, so no command of it runs
_RUNTIME_KEYS = ("threads",)  # of the environment: decided at the start of a run


@dataclass(frozen=True)
class Reproduction:
    """The written YAML and its differences from the recorded run.

    Attributes:
        path: the YAML.
        command: the command that trains it.
        config_differences: one line per key that could not be reproduced.
        environment_differences: one line per other difference since the run: versions, machine, data.
    """

    path: Path
    command: str
    config_differences: list[str]
    environment_differences: list[str]


def reproduce(run: Path, output: Path | None = None, replay: bool = False) -> Reproduction:
    """Write a YAML with the configuration of a run's record, under the name NAME-again.

    Args:
        run: run folder, or its record.json.
        output: the YAML to write; by default NAME-again.yaml in the current folder.
        replay: follow the run's trace step by step instead of its budget.

    Raises:
        CramError: no record, a record without configuration, an unknown recipe, or no trace to replay.
    """
    folder = run.parent if run.name == RECORD else run
    record = read_reproducible_record(folder)
    name = f"{plain_name(record['run_name'], f'{folder / RECORD}: run_name')}-again"
    wanted = flatten(record["config"]) | {"run_name": name}
    if "microbatch" in record:  # chosen by `auto`: another one would change sums in their last bits
        wanted["train.device_train_microbatch_size"] = record["microbatch"]["rows"]
    if replay:
        steps = len(read_trace(folder))
        if record["status"] != "finished":
            raise CramError(
                f"{folder}: cannot replay a run that did not finish (status {record['status']}, {steps} steps); "
                "omit --replay"
            )
        wanted |= {f"budget.{key}": None for key in vars(BudgetConfig())}
        wanted["budget.replay"] = str(folder.resolve())
        wanted["checkpoint.branch_at"] = []  # no branch can leave a replay
    target = output or Path(f"{Path(name).name}.yaml")
    if target.exists():
        raise CramError(f"{target}: already exists; choose another name with --output")
    values, composed = recompose(wanted, record["provenance"])
    devices = record["world_size"]
    heading = f"# Configuration of {folder} (hash {record['config_hash']}){', replaying its schedule' * replay}."
    write_atomic(target, f"{heading}\n{OmegaConf.to_yaml(OmegaConf.create(unflatten(values)))}")
    return Reproduction(
        target,
        train_command(target, devices),
        list(_list_differences(wanted, flatten(composed.plain), "in the run", "here")),
        [*_environment_differences(record), *_data_differences(record, composed)],
    )


def train_command(yaml: Path, devices: int = 1) -> str:
    """Return the command that trains `yaml`, which needs nothing but the installed package."""
    return f"composer -n {devices} -m cram_composer.cli train {yaml}" if devices > 1 else f"cram train {yaml}"


def read_reproducible_record(path: Path) -> dict[str, Any]:
    """Read a record that holds everything needed to compose its configuration again. Raises CramError."""
    record = read_record(path)
    if missing := _REQUIRED_KEYS - record.keys():
        raise CramError(f"{path}: cannot be reproduced, because its {RECORD} lacks {', '.join(sorted(missing))}")
    return record


def recompose(wanted: dict[str, Any], provenance: dict[str, str]) -> tuple[dict[str, Any], Composed]:
    """Return the smallest set of YAML values that composes to the wanted ones, and their composition.

    Values that came from a recipe or a default are written out only if that recipe or default has changed. Keys that
    this version does not have, values whose credentials were not recorded, and `notify` are left out.
    """
    wanted = {key: value for key, value in wanted.items() if not is_redacted(value) and key not in _COMMANDS}
    chosen = {
        key: value
        for key, value in wanted.items()
        if key in _CHANGED_KEYS
        or key.startswith("budget.")
        or not _is_from_recipe_or_default(provenance.get(recorded_key(key, provenance), "default"))
    }
    if any(key.startswith(_EARLY_STOP) for key in chosen):  # without its conditions it would be refused
        chosen |= {key: value for key, value in wanted.items() if key.startswith(_EARLY_STOP)}
    chosen = {key: value for key, value in chosen.items() if has_key(RunConfig, key)}
    composed = _compose_values(chosen)
    now = flatten(composed.plain)
    changed = {key: v for key, v in wanted.items() if now.get(key, _ABSENT) != v and has_key(RunConfig, key)}
    if changed:
        chosen |= changed
        composed = _compose_values(chosen)
    return chosen, composed


def _is_from_recipe_or_default(origin: str) -> bool:
    return origin == "default" or origin.startswith("recipe ")


def _compose_values(values: dict[str, Any]) -> Composed:
    with tempfile.TemporaryDirectory(prefix="cram-reproduce-") as scratch:
        path = Path(scratch) / "run.yaml"
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(unflatten(values))))
        try:
            return compose(RunConfig, path, [])
        except CramError as error:
            problem = str(error).replace(str(path), "its record")
            raise CramError(
                f"this version of cram-composer cannot compose the run's configuration: {problem}"
            ) from None


def _list_differences(then: dict[str, Any], now: dict[str, Any], before: str, after: str) -> Iterator[str]:
    for key in differing_keys(then, now):
        old, new = ("absent" if key not in values else shortened(repr(values[key])) for values in (then, now))
        yield f"{key}: {old} {before}, {new} {after}"


def _environment_differences(record: dict[str, Any]) -> Iterator[str]:
    then, now = (
        {key: value for key, value in flatten(found).items() if key not in _RUNTIME_KEYS}
        for found in (record["environment"], environment())
    )
    yield from _list_differences(then, now, "then", "now")


def _data_differences(record: dict[str, Any], composed: Composed) -> Iterator[str]:
    from cram_composer.data.loading.prepare import resolve_location
    from cram_composer.data.manifest import MANIFEST, load_manifest, summarize

    folder, _ = resolve_location(composed.config.data)
    if not (folder / MANIFEST).is_file():
        yield f"data: not built yet in {folder}; build it, then compare by the same command with another --output"
        return
    then, now = flatten(record["data"]), flatten(summarize(load_manifest(folder)))
    yield from (f"data.{line}" for line in _list_differences(then, now, "then", "now"))
