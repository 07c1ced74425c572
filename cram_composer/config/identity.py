"""The values that identify a run: what it learns, apart from how it is run."""

from __future__ import annotations

from typing import Any

from cram_composer.config.layers import flatten
from cram_composer.config.schema.introspect import is_free_key
from cram_composer.config.schema.run import RunConfig

_ABSENT = object()


def learnt_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the values of the keys that are fixed for a run, by dotted key.

    Args:
        config: a whole configuration of a run as nested dicts.
    """
    return {key: value for key, value in flatten(config).items() if not is_free_key(RunConfig, key.split("."))}


def learnt_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the fixed keys whose values differ; a key that an older version lacked had its default."""
    given, new = learnt_values(before), learnt_values(now)
    old = _defaults() | given
    dropped = [key for key in given if key not in new]
    return [*(key for key, value in new.items() if old.get(key, _ABSENT) != value), *dropped]


def non_default_values(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fixed values of a configuration that differ from the defaults, by dotted key."""
    defaults = _defaults()
    return {key: value for key, value in learnt_values(config).items() if defaults.get(key, _ABSENT) != value}


def free_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the old and new value, "before" and "after", of each free key whose value differs; None if absent."""
    old, new = flatten(before), flatten(now)
    return {
        key: {"before": old.get(key), "after": new.get(key)}
        for key in dict.fromkeys([*new, *old])
        if old.get(key) != new.get(key) and is_free_key(RunConfig, key.split("."))
    }


def _defaults() -> dict[str, Any]:
    return learnt_values(RunConfig().model_dump(mode="json"))
