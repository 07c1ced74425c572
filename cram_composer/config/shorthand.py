"""Short forms that any layer may use: `budget: 24h`, `scaleout: ddp`, and `compile: off`, in YAML a boolean."""

from __future__ import annotations

from typing import Any

_CLOCKS = ("wall", "device_hours", "replay")


def expand(values: dict[str, Any]) -> dict[str, Any]:
    """Spell out the short forms in a layer's nested values."""
    expanded = dict(values)
    if "budget" in values:
        expanded["budget"] = _budget(values["budget"])
    if isinstance(values.get("scaleout"), str):
        expanded["scaleout"] = {"strategy": values["scaleout"]}
    train = values.get("train")
    if isinstance(train, dict) and isinstance(train.get("compile"), bool):
        expanded["train"] = {**train, "compile": "auto" if train["compile"] else "off"}
    return expanded


def _budget(budget: Any) -> dict[str, Any]:
    """Naming one clock (wall, device_hours, replay) takes back the one that an earlier layer named."""
    if not isinstance(budget, dict):
        # A bare number is left for the duration parser, whose message says how to write one.
        budget = {"wall": None if budget is None else str(budget)}
    if any(budget.get(clock) is not None for clock in _CLOCKS):
        budget = {**dict.fromkeys(_CLOCKS), **budget}
    return budget
