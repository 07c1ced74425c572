"""Configurations as tables: every key with its source, and the keys that differ between several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cram_composer.analysis.html.tables import Table
from cram_composer.analysis.runs.run import RunData
from cram_composer.config.formatting import NOT_RECORDED, short_path
from cram_composer.config.layers import differing_keys, flatten, recorded_key


def configuration_tables(run: RunData) -> tuple[Table, Table]:
    """Every key with its value and source: first the keys that were set, then those at their defaults."""
    provenance = run.get("provenance") or {}
    rows = [
        (key, value_text(value), _source(key, provenance)) for key, value in flatten(run.get("config") or {}).items()
    ]
    chosen = sorted((row for row in rows if row[2] != "default"), key=lambda row: _rank(row[2]))
    defaults = [row for row in rows if row[2] == "default"]
    header = ("Key", "Value", "From")
    return (
        Table(f"Set by the command line, a file or a recipe ({len(chosen)})", header, chosen),
        Table(f"Defaults ({len(defaults)})", header, defaults),
    )


def differences_table(caption: str, names: Sequence[str], configurations: Sequence[dict[str, Any]]) -> Table:
    """Dotted keys whose values differ between configurations, one column per configuration."""
    rows = [
        (key, *(value_text(one[key]) if key in one else "—" for one in configurations))
        for key in differing_keys(*configurations)
    ]
    return Table(caption, ("Key", *names), rows)


def value_text(value: Any) -> str:
    """A configuration value as printed on pages: strings unchanged, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _source(key: str, provenance: dict[str, str]) -> str:
    """Source of a key, or of the enclosing mapping if that was set as a whole."""
    return short_path(provenance.get(recorded_key(key, provenance), NOT_RECORDED))


def _rank(source: str) -> int:
    if source.startswith("recipe "):
        return 2
    return {"command line": 0, NOT_RECORDED: 3}.get(source, 1)  # the rest are files
