"""Numbers and names as the page prints them. What is missing prints as "not measured", never as a zero."""

from __future__ import annotations

import math
from typing import Any

NOT_MEASURED = "not measured"


def is_number(value: Any) -> bool:
    """True for a finite int or float; JSON's null, NaN and booleans are no measurements."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def decimal(value: Any, digits: int = 3) -> str:
    """A number with a fixed count of decimals and thousands separators."""
    return f"{value:,.{digits}f}" if is_number(value) else NOT_MEASURED


def count(value: Any) -> str:
    """A whole number in full: 12,345,678."""
    return f"{round(value):,}" if is_number(value) else NOT_MEASURED


def short_count(value: Any) -> str:
    """A large number to four significant digits: 119.5 M, 2.048 B; below 10,000 in full."""
    if not is_number(value):
        return NOT_MEASURED
    if abs(value) < 10_000:
        return count(value)
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {suffix}"
    return f"{value / 1e3:.4g} k"


def percent(share: Any, digits: int = 1) -> str:
    """A share of one as a percentage: 0.254 -> 25.4 %."""
    return f"{100 * share:.{digits}f} %" if is_number(share) else NOT_MEASURED


def duration(seconds: Any) -> str:
    """Seconds as 12.3 s, 9 min 59.8 s or 23 h 59 min 30 s."""
    if not is_number(seconds):
        return NOT_MEASURED
    tenths = round(seconds * 10)
    if tenths < 600:
        return f"{tenths / 10:.1f} s"
    if tenths < 36000:
        minutes, rest = divmod(tenths, 600)
        return f"{minutes} min {rest / 10:.1f} s"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min {rest % 60} s"


def elide(text: str, length: int) -> str:
    """Shorten `text` to `length` characters by cutting its middle, where run names differ least."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
