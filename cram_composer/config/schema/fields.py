"""Fields of the schemas that carry more than a type: names to choose from, ranges."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def choice(default: str, *others: str) -> Any:
    """A text field that takes one of a few names; the first is the default."""
    return field(default=default, metadata={"choices": (default, *others)})


def number(default: Any, low: float, high: float | None = None) -> Any:
    """A number (or None) from `low` to `high`, both included."""
    return field(default=default, metadata={"range": (low, high)})
