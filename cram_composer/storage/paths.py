"""Paths that come from a data set, a bucket, a record or a name: relative, and inside the folder they belong to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cram_composer.config.units import name_problem
from cram_composer.errors import CramError


class UnsafePathError(CramError):
    """A foreign path that leads out of its folder."""


def resolve_inside(root: Path, name: Any, origin: str) -> Path:
    """Return `root / name` for a relative path written by someone else.

    Args:
        root: folder that must contain the path.
        name: the path as it stands in a file, a bucket or a record.
        origin: where it stands, for the error.

    Raises:
        UnsafePathError: not a plain relative path, or a symbolic link below `root` leads out of it.
    """
    relative = plain_name(name, origin)
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise UnsafePathError(f"{origin}: {path} is a link out of {root}; replace the link by the files")
    return path


def plain_name(name: Any, origin: str) -> str:
    """Return a relative path without `..`, such as a run name; links are not looked at. Raises UnsafePathError."""
    problem = name_problem(name)
    if problem is not None:
        raise UnsafePathError(f"{origin}: {name!r} {problem}; refused, since it may lead out of its folder")
    return str(name)
