"""Errors a user can act on: one clear line each, exit status 2, no traceback."""

from __future__ import annotations


class CramError(Exception):
    """A problem the user can fix. The message is one line: what is wrong, where, and what to do."""


class ConfigError(CramError, ValueError):
    """A configuration that cannot be used: unknown key, wrong value, conflicting recipes.

    A ValueError too, so that pydantic reports it with the key whose validator raised it.
    """
