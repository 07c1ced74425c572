"""Removal of credentials from whatever is printed or stored: arguments of loggers, and URIs."""

from __future__ import annotations

import re
from typing import Any

REDACTED = "***"
# Loggers take any arguments, so a name decides. Elsewhere `tokens` is a number and `keys` are names. The URL of a
# webhook in `notify` is a credential.
_SECRET = re.compile(r"notify$|logging\.\w+\..*(key|token|secret|password)", re.IGNORECASE)
# USER:PASSWORD@ or USER@ after ://. A password may contain slashes, as AWS secrets do; a port is not a password.
_IN_URI = re.compile(r"://(?:[^\s/@:]*:(?!\d+/)[^\s@]*|[^\s/@]+)@")


def redact_text(text: str) -> str:
    """Replace the credentials of all URIs in a text."""
    return _IN_URI.sub(f"://{REDACTED}@", text)


def redact(value: Any, key: str = "") -> Any:
    """Return a configuration, or the value of one dotted key of it, without credentials."""
    if value is not None and _SECRET.match(key):
        return REDACTED
    if isinstance(value, dict):
        return {name: redact(item, f"{key}.{name}" if key else str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def is_redacted(value: Any) -> bool:
    """Return True if credentials were removed from a value, which makes it unusable."""
    return isinstance(value, str) and (value == REDACTED or f"://{REDACTED}@" in value)
