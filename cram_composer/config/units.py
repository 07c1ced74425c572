"""Parsing of durations, sizes, URIs and names: 24h, 90m, 600s, 1d, 1h30m; 50gb; s3://bucket/path."""

from __future__ import annotations

import re
from typing import Any

from cram_composer.config.redaction import REDACTED, redact_text
from cram_composer.errors import ConfigError

_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_LONGEST = 3660 * _SECONDS["d"]
_LARGEST = 2**60  # bytes
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")
_SIZES = ["b", "kb", "mb", "gb", "tb"]
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(b|kb|mb|gb|tb)")
SCHEMES = ("s3", "gs", "azure")  # of object stores
_URI = re.compile(r"([^:/]+):(/+)([^/]*)/?(.*)")


def parse_duration(text: str) -> float:
    """Return the seconds of a duration such as `24h`, `90m`, `600s`, `1d` or `1h30m`. Raises ConfigError."""
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or not any(match.groups()):
        raise ConfigError(f"'{text}' is not a duration; write it as 24h, 90m, 600s, 1d or 1h30m")
    seconds = sum(float(value) * _SECONDS[unit] for value, unit in zip(match.groups(), "dhms", strict=True) if value)
    if not 0 < seconds <= _LONGEST:
        raise ConfigError(f"'{text}': the duration must be > 0 and at most ten years")
    return seconds


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as `50gb`, `500mb` or `1.5tb`; as in Streaming, 1 kb is 1024 bytes."""
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"'{text}' is not a size; write it as 50gb, 500mb or 2tb")
    size = float(match[1]) * 1024 ** _SIZES.index(match[2])
    if size > _LARGEST:
        raise ConfigError(f"'{text}': the size must be at most {_LARGEST >> 40}tb")
    return int(size)


def split_uri(uri: str) -> tuple[str, str, str] | None:
    """Split the URI of an object store into scheme, bucket and path; None for a folder. Raises ConfigError."""
    match = _URI.fullmatch(uri)
    if match is None:
        return None
    scheme, slashes, bucket, path = match.groups()
    shown = f"{scheme}://{REDACTED}" if ":" in bucket else redact_text(uri)
    if shown != uri:
        raise ConfigError(f"{shown}: must not contain credentials; set AWS_ACCESS_KEY_ID or those of the provider")
    if scheme not in SCHEMES or slashes != "//" or not bucket:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ConfigError(f"{uri}: not a URI of an object store; use {known} with a bucket, or a folder")
    return scheme, bucket, path.rstrip("/")


def name_problem(name: Any) -> str | None:
    """Return why a name is not a plain relative path, None if it is one: no `..`, no leading `/`, nothing invisible."""
    if not isinstance(name, str) or not name:
        return "is not a path"
    if not name.isprintable():
        return "contains invisible characters"
    if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")):
        return "is not a plain relative path"
    return None


def format_duration(seconds: float) -> str:
    """Format a duration as `45 s`, `9:59` or `23:59:59`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
