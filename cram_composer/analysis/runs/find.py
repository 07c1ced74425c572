"""Find run folders, and filter runs by `key=value`."""

from __future__ import annotations

import difflib
import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cram_composer.analysis.runs.run import RunData
from cram_composer.config.layers import flatten, parse_override
from cram_composer.errors import CramError
from cram_composer.runs.folder import RECORD

OWN_KEYS = ("name", "status", "recipe")  # filter keys that are not configuration keys


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the run folders at or below `folder`, sorted, without descending into run folders."""
    for path, folders, files in os.walk(folder):
        if RECORD in files:
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def filter_runs(runs: Sequence[RunData], filters: Sequence[str]) -> list[RunData]:
    """Keep the runs that match every `key=value`.

    A key is a configuration key (`seed`, `optimizer.name`), `name`, `status` or `recipe`. Values are parsed as YAML;
    strings may contain the wildcards `*` and `?`. A list matches if it contains the value, or every value of `[a,b]`.

    Raises:
        CramError: an item without `=`, or a key that no run has.
    """
    for item in filters:
        key, equals, value = item.partition("=")
        if not equals:
            raise CramError(f"{item}: not a filter; use key=value, such as recipe=muon")
        seen = [_value(run, key) for run in runs]
        if runs and all(entry is _ABSENT for entry in seen):
            known = [*OWN_KEYS, *flatten(runs[0].get("config") or {})]
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise CramError(f"{item}: no run has the key '{key}'; did you mean '{nearest}'?")
        wanted = value if value[:1] in ("*", "?") else parse_override(item)[1]  # special characters in YAML
        runs = [run for run, entry in zip(runs, seen, strict=True) if _matches(entry, wanted)]
    return list(runs)


_ABSENT = object()


def _value(run: RunData, key: str) -> Any:
    if key in OWN_KEYS:
        return {"name": run.name, "status": run.get("status"), "recipe": run.get("recipes") or []}[key]
    value: Any = run.get("config") or {}
    for part in key.split("."):
        value = value.get(part, _ABSENT) if isinstance(value, dict) else _ABSENT
    return value


def _matches(value: Any, wanted: Any) -> bool:
    if isinstance(value, list):
        return all(
            any(_matches(entry, one) for entry in value) for one in (wanted if isinstance(wanted, list) else [wanted])
        )
    if isinstance(wanted, str):
        return isinstance(value, str) and fnmatch.fnmatchcase(value, wanted)
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
