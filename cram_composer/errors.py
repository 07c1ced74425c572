"""Errors that a user can fix: one line each, exit status 2, no traceback."""

from __future__ import annotations


class CramError(Exception):
    """A problem that the user can fix. The message is one line: the problem, its place and the remedy."""


class ConfigError(CramError, ValueError):
    """An invalid configuration: unknown key, wrong value, conflicting recipes.

    Also a ValueError, so that pydantic reports it with the key whose validator raised it.
    """


def describe_error(error: BaseException) -> str:
    """Return the first line of an error, with its type unless it is a CramError."""
    first_line = str(error).splitlines()[0] if str(error) else ""
    return first_line if isinstance(error, CramError) else f"{type(error).__name__}: {first_line}"
