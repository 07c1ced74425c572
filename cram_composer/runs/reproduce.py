"""`cram reproduce`: a run YAML that gives exactly the configuration of a record, and what else has changed since."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cram_composer.budget.trace import read_trace
from cram_composer.config.compose import Composed, compose
from cram_composer.config.layers import leaves, nest
from cram_composer.config.schema.introspect import has_key
from cram_composer.config.schema.run import BudgetConfig, RunConfig
from cram_composer.errors import CramError
from cram_composer.runs.folder import RECORD, environment, upgrade_record
from cram_composer.storage.files import read_json, write_atomic

_ABSENT = object()
_LONGEST = 80  # characters of a value in a line
_NEEDED = {"run_name", "status", "config", "provenance", "config_hash", "world_size", "environment", "data"}
_OWN = ("run_name",)  # changed on purpose
_AT_START = ("threads",)  # of the environment: decided when the run starts


@dataclass(frozen=True)
class Reproduction:
    """What was written and what differs.

    Attributes:
        path: the YAML.
        command: trains it.
        configuration: keys that could not be had as they were, a line each; empty if the configuration is the same.
        surroundings: what else differs from when the run was made: versions, machine, data.
    """

    path: Path
    command: str
    configuration: list[str]
    surroundings: list[str]


def reproduce(run: Path, output: Path | None = None, replay: bool = False) -> Reproduction:
    """Write a YAML with the configuration of a run's record, under the name NAME-again.

    Args:
        run: run folder, or its record.json.
        output: the YAML to write; by default NAME-again.yaml in the current folder.
        replay: follow the run's trace step by step instead of its budget.

    Raises:
        CramError: no record, one without a configuration, a recipe that is gone, or no trace to replay.
    """
    folder = run.parent if run.name == RECORD else run
    record = read_full_record(folder)
    name = f"{record['run_name']}-again"
    wanted = leaves(record["config"]) | {"run_name": name}
    if replay:
        steps = len(read_trace(folder))
        if record["status"] != "finished":
            raise CramError(
                f"{folder}: did not finish ({record['status']}); its trace of {steps} steps is not a schedule"
            )
        wanted |= {f"budget.{key}": None for key in vars(BudgetConfig())}
        wanted["budget.replay"] = str(folder.resolve())
    target = output or Path(f"{name}.yaml")
    if target.exists():
        raise CramError(f"{target}: is there already; give another name with --output")
    values, composed = recompose(wanted, record["provenance"])
    devices = record["world_size"]
    heading = f"# As {folder} was configured (hash {record['config_hash']}){', its schedule replayed' * replay}."
    write_atomic(target, f"{heading}\n{OmegaConf.to_yaml(OmegaConf.create(nest(values)))}")
    return Reproduction(
        target,
        f"composer {f'-n {devices} ' if devices > 1 else ''}train.py {target}",
        list(_differences(wanted, leaves(composed.plain), "as the run had it", "here")),
        [*_environment(record), *_data(record, composed)],
    )


def read_full_record(folder: Path) -> dict[str, Any]:
    try:
        record = upgrade_record(read_json(folder / RECORD))
        missing = _NEEDED - record.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise CramError(f"{folder}: not a run folder with a readable {RECORD} ({error})") from None
    if missing:
        raise CramError(f"{folder / RECORD}: has no {', '.join(sorted(missing))}, so that the run cannot be made again")
    return record


def recompose(wanted: dict[str, Any], provenance: dict[str, str]) -> tuple[dict[str, Any], Composed]:
    """Values of a YAML, as few as give the wanted ones, and what they compose to.

    What came from a recipe comes from it again, and a default from the schema; whatever is not the same then, because a
    recipe or a default has changed, is written out. Keys that this version does not have are left out.
    """
    ours = {
        key: value
        for key, value in wanted.items()
        if key in _OWN or key.startswith("budget.") or not _given(provenance.get(_owner(key, provenance), "default"))
    }
    ours = {key: value for key, value in ours.items() if has_key(RunConfig, key)}
    composed = _compose(ours)
    now = leaves(composed.plain)
    changed = {key: v for key, v in wanted.items() if now.get(key, _ABSENT) != v and has_key(RunConfig, key)}
    if changed:
        ours |= changed
        composed = _compose(ours)
    return ours, composed


def _given(origin: str) -> bool:
    return origin == "default" or origin.startswith("recipe ")


def _owner(key: str, provenance: dict[str, str]) -> str:
    """The key itself, or the one above it that was set as a whole."""
    while key not in provenance and "." in key:
        key = key.rpartition(".")[0]
    return key


def _compose(values: dict[str, Any]) -> Composed:
    with tempfile.TemporaryDirectory(prefix="cram-reproduce-") as scratch:
        path = Path(scratch) / "run.yaml"
        path.write_text(OmegaConf.to_yaml(OmegaConf.create(nest(values))))
        try:
            return compose(RunConfig, path, [])
        except CramError as error:
            said = str(error).replace(str(path), "its record")
            raise CramError(f"this version of cram-composer cannot have the run's configuration: {said}") from None


def _differences(then: dict[str, Any], now: dict[str, Any], before: str, after: str) -> Iterator[str]:
    for key in dict.fromkeys([*then, *now]):
        one, other = then.get(key, _ABSENT), now.get(key, _ABSENT)
        if one != other:
            yield f"{key}: {_said(one)} {before}, {_said(other)} {after}"


def _said(value: Any) -> str:
    text = "absent" if value is _ABSENT else repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _environment(record: dict[str, Any]) -> Iterator[str]:
    then, now = (
        {key: value for key, value in leaves(found).items() if key not in _AT_START}
        for found in (record["environment"], environment())
    )
    yield from _differences(then, now, "then", "now")


def _data(record: dict[str, Any], composed: Composed) -> Iterator[str]:
    from cram_composer.data.loading.prepare import places
    from cram_composer.data.manifest import MANIFEST, load_manifest, summary

    folder, _ = places(composed.config.data)
    if not (folder / MANIFEST).is_file():
        yield f"data: not at {folder} yet; once it is there, the same command with another --output compares it"
        return
    then, now = leaves(record["data"]), leaves(summary(load_manifest(folder)))
    yield from (f"data.{line}" for line in _differences(then, now, "then", "now"))
