"""Format numbers, names and paths for pages and the console. Missing values print as "not measured", never as zero."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

NOT_MEASURED = "not measured"
NOT_RECORDED = "not recorded"


def is_number(value: Any) -> bool:
    """Return True for a finite int or float; JSON nulls, NaN and booleans are not measurements."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**1023  # so that it fits a float


def ratio(part: Any, whole: Any) -> float | None:
    """Return `part` / `whole`; None if either was not measured or `whole` is not positive."""
    return part / whole if is_number(part) and is_number(whole) and whole > 0 else None


def decimal(value: Any, digits: int = 3) -> str:
    """Format a number with a fixed count of decimals and thousands separators."""
    return _without_negative_zero(f"{value:,.{digits}f}") if is_number(value) else NOT_MEASURED


def signed(value: float, digits: int) -> str:
    """Format a difference with its sign and a fixed count of decimals; a rounded zero has no sign."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def _without_negative_zero(text: str) -> str:
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def count(value: Any) -> str:
    """Format a whole number in full: 12,345,678."""
    return f"{round(value):,}" if is_number(value) else NOT_MEASURED


def short_count(value: Any) -> str:
    """Format a large number to four significant digits: 119.5 M, 2.048 B; below 10,000 in full."""
    if not is_number(value):
        return NOT_MEASURED
    if abs(value) < 10_000:
        return count(value)
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= scale:
            return f"{value / scale:.4g} {suffix}"
    return f"{value / 1e3:.4g} k"


def percent(share: Any, digits: int = 1) -> str:
    """Format a fraction as a percentage: 0.254 -> 25.4 %."""
    return _without_negative_zero(f"{100 * share:.{digits}f}") + " %" if is_number(share) else NOT_MEASURED


def duration(seconds: Any) -> str:
    """Format seconds as 12.3 s, 9 min 59.8 s or 23 h 59 min 30 s, without parts that are zero: 10 min, 24 h."""
    if not is_number(seconds):
        return NOT_MEASURED
    rounded = round(seconds, 1) if seconds < 3600 else round(seconds)
    minutes, rest = divmod(rounded, 60)
    hours, minutes = divmod(int(minutes), 60)
    parts = [f"{hours} h"] * (hours > 0) + [f"{minutes} min"] * (minutes > 0)
    if rest >= 0.05 or not parts:
        parts.append(f"{rest:.0f} s" if hours else f"{rest:.1f} s")
    return " ".join(parts)


def short_path(path: str | Path) -> str:
    """Return an absolute path relative to the current folder or to `~` if below one of them, others unchanged."""
    shown = Path(path)
    if shown.is_absolute():
        for folder, prefix in ((Path.cwd(), Path()), (Path.home(), Path("~"))):
            if shown.is_relative_to(folder):
                return str(prefix / shown.relative_to(folder))
    return str(path)


def elide(text: str, length: int) -> str:
    """Shorten `text` to `length` characters by cutting its middle: run names differ at their ends."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
