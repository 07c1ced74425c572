"""Layers of a configuration: YAML files and command-line overrides as nested dicts, with short forms expanded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cram_composer.config.schema.run import CLOCKS, BudgetConfig
from cram_composer.errors import ConfigError

_ABSENT = object()

COMMAND_LINE = "command line"
_MISSING = "??? marks a missing value; set a value"
BUDGET_SHORTHAND = ["24h", "90m", "1h30m"]


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping, without validation. Raises ConfigError."""
    try:
        loaded = OmegaConf.to_container(OmegaConf.load(file))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not isinstance(loaded, dict):
        raise ConfigError(f"{file}: the top level must be a mapping of keys to values")
    if (missing := _missing_key(loaded)) is not None:
        raise ConfigError(f"{missing}: {_MISSING} (set in {file})")
    return {str(key): value for key, value in loaded.items()}


def parse_override(item: str) -> tuple[str, Any]:
    """Split `key=value` and parse the value as YAML. Raises ConfigError."""
    key, equals, value = item.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"{COMMAND_LINE}: '{item}' is not an override; write key=value, such as budget=6h")
    try:
        parsed: Any = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]))
    except (YAMLError, OmegaConfBaseException):
        raise ConfigError(f"{COMMAND_LINE}: the value of '{item}' is not valid YAML") from None
    if (missing := _missing_key({key: parsed["value"]})) is not None:
        raise ConfigError(f"{missing}: {_MISSING} (set on the {COMMAND_LINE})")
    return key, parsed["value"]


def _missing_key(value: Any) -> str | None:
    """Return the dotted key of OmegaConf's mark of a missing value in nested mappings and lists, if there is one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if item == "???":
            return str(key)
        if (inner := _missing_key(item)) is not None:
            return f"{key}.{inner}"
    return None


def unflatten(values: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested dicts. Raises ConfigError if a key is both a value and a section."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, last = key.split(".")
        inner = nested
        for name in sections:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{key}: '{name}' is set both to a value and to a section; keep one")
        if isinstance(inner.get(last), dict) and isinstance(value, dict):
            inner[last] |= value
        else:
            inner[last] = value
    return nested


def spell_out(layer: dict[str, Any]) -> dict[str, Any]:
    """Nest dotted keys and replace the short forms `budget: 24h` and `scaleout: ddp`. Raises ConfigError."""
    values = unflatten(layer)
    if "budget" in values:
        values["budget"] = _spelled_out_budget(values["budget"], whole="budget" in layer)
    if isinstance(values.get("scaleout"), str):
        values["scaleout"] = {"strategy": values["scaleout"]}
    return values


def _spelled_out_budget(budget: Any, whole: bool) -> dict[str, Any]:
    """Expand the budget and unset the limits of earlier layers that it replaces.

    A `whole` budget replaces all of them. A dotted key refines the budget: it adds its limit, but one clock (wall,
    device_hours, replay) replaces another.
    """
    if not isinstance(budget, dict):
        budget = {"wall": budget}
    replaced = BudgetConfig.model_fields if whole else CLOCKS
    if any(budget.get(limit) is not None for limit in replaced):
        budget = {**dict.fromkeys(replaced), **budget}
    return budget


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Map dotted keys to the leaves of nested mappings; lists and empty mappings are leaves."""
    if isinstance(value, dict) and (value or not prefix):
        found: dict[str, Any] = {}
        for key, item in value.items():
            found |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: value}


def differing_keys(*flat: Mapping[str, Any]) -> list[str]:
    """Return the keys of flat settings whose values differ, or that some of them lack."""
    keys = dict.fromkeys(key for one in flat for key in one)
    return [key for key in keys if any(one.get(key, _ABSENT) != flat[0].get(key, _ABSENT) for one in flat)]


def recorded_key(key: str, provenance: Mapping[str, str]) -> str:
    """Return the key, or the nearest enclosing one that has a provenance."""
    while key not in provenance and "." in key:
        key = key.rpartition(".")[0]
    return key
