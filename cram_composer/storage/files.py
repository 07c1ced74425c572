"""Atomic file writes: a temporary file is renamed, so that a kill leaves the old file or the new one."""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cram_composer.errors import CramError

_T = TypeVar("_T")


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace the file `path` atomically; the content is synced to disk before the rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError for NaN and infinities, which JSON lacks."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises ValueError if it is not JSON, OSError if it cannot be read."""
    return parse_json(path.read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError, also for values that are nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_checked(path: Path, shape: type[_T], remedy: str) -> _T:
    """Parse a JSON file and check its keys and types.

    Args:
        path: the file.
        shape: a TypedDict; further keys are allowed.
        remedy: the end of the error message.

    Raises:
        CramError: the file cannot be read, is not JSON, or does not have this shape.
    """
    try:
        value = read_json(path)
        _adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(map(str, problem["loc"]))
        what = f"{key} {'is missing' if problem['type'] == 'missing' else 'has a wrong type'}" if key else "is foreign"
        raise CramError(f"{path}: damaged ({what}); {remedy}") from None
    except OSError as error:
        raise CramError(f"{path}: cannot be read ({error.strerror or error}); {remedy}") from None
    except ValueError as error:
        cause = "empty" if not path.read_bytes().strip() else f"not valid JSON: {' '.join(str(error).split())}"
        raise CramError(f"{path}: damaged ({cause}); {remedy}") from None
    return value  # type: ignore[no-any-return]


@functools.cache
def _adapter(shape: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that is no longer written to; copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
