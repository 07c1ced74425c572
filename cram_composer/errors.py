"""Errors that a user can fix: one line each, exit status 2, no traceback."""

from __future__ import annotations


class CramError(Exception):
    """A problem that the user can fix. The message is one line: the problem, its place and the remedy."""


class ConfigError(CramError, ValueError):
    """An invalid configuration: unknown key, wrong value, conflicting recipes.

    Also a ValueError, so that pydantic reports it with the key whose validator raised it.
    """
