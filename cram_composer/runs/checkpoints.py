"""Checkpoint files of a run: listing and integrity checks, without torch."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cram_composer.storage.files import read_json


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint whose size and hash match its `.json`."""

    path: Path
    step: int


def sha256(file: BinaryIO) -> str:
    """Return the SHA-256 of the rest of an open file, in hexadecimal."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def checkpoint_files(directory: Path) -> list[Path]:
    """List the `.pt` files of a folder, newest first, without checking them."""
    return sorted(directory.glob("step-*.pt"), reverse=True)


def newest_checkpoint(directory: Path, quiet: bool = False) -> SavedCheckpoint | None:
    """Return the newest intact checkpoint, None if there is none; warn about newer damaged ones unless `quiet`."""
    for path in checkpoint_files(directory):
        problem = checkpoint_problem(path)
        if problem is None:
            return SavedCheckpoint(path, int(read_json(path.with_suffix(".json"))["step"]))
        if not quiet:
            warnings.warn(f"{path}: {problem}; using the checkpoint before it", stacklevel=2)
    return None


def checkpoint_problem(path: Path) -> str | None:
    """Describe the damage of a checkpoint; None if its size and hash match its `.json`."""
    try:
        expected = read_json(path.with_suffix(".json"))
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"truncated ({size} of {expected['bytes']} bytes)"
        with open(path, "rb") as file:
            return None if sha256(file) == expected["sha256"] else "corrupt (its hash is not that in its .json)"
    except FileNotFoundError:
        return "an interrupted save (it has no .json)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"
