"""Atomic file writes: a temporary file is renamed, so that a kill leaves the old file or the new one."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from cram_composer.errors import CramError

_T = TypeVar("_T")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = tuple(text for number in _FULL for text in (os.strerror(number), f"(os error {number})"))
_TORCH_TEXTS = ("PytorchStreamWriter failed", "inline_container")  # its errors do not say why a write failed
_ALMOST_NOTHING = 1 << 20  # bytes


class DiskFullError(CramError, OSError):
    """A disk without space, or a user's quota that is used up."""


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raise DiskFullError, which names the file and the remedy, in place of any library's error for a full disk.

    Args:
        path: file or folder that the block writes, named if the error names none.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error, path):
            raise
        named = getattr(error, "filename", None) or path
        raise DiskFullError(f"{named}: the disk is full; free some space, then run the same command again") from error


def is_disk_full(error: BaseException, path: Path) -> bool:
    """Return True if writing `path` failed with `error` because the disk or the quota is full."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        text = str(link)
        if getattr(link, "errno", None) in _FULL or any(full in text for full in _FULL_TEXTS):
            return True
        if any(found in text for found in _TORCH_TEXTS):
            existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
            return shutil.disk_usage(existing).free < _ALMOST_NOTHING
        link = link.__cause__ or link.__context__
    return False


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace the file `path` atomically; the content is synced to disk before the rename. Raises DiskFullError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        with naming_full_disk(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


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
    hashable: Any = shape  # mypy does not take type[T] for one
    try:
        value: _T = read_json(path)
        _adapter(hashable).validate_python(value, strict=True)
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
    return value


@functools.cache
def _adapter(shape: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file that is no longer written to; copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def lock_folder() -> Path:
    """Return a folder on this machine that only this user can write to, for locks shared by the user's processes.

    Raises:
        CramError: another user owns its name in the shared temporary folder, or has access to it.
    """
    path = Path(tempfile.gettempdir()) / f"cram-composer-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise CramError(f"{path}: must be a folder that only you can use; remove it, or set TMPDIR to another folder")
    return path
