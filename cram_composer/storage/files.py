"""Atomic file writes: a temporary file is renamed, so that a kill leaves the old file or the new one."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError


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
    """Parse a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


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
