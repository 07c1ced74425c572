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
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def checkpoint_files(directory: Path) -> list[Path]:
    """List the `.pt` files of a folder, newest first, without checking them."""
    return sorted(directory.glob("step-*.pt"), reverse=True)


def newest_checkpoint(directory: Path, quiet: bool = False) -> SavedCheckpoint | None:
    """Return the newest intact checkpoint, None if there is none; warn about newer damaged ones unless `quiet`."""
    problems: list[str] = []
    for path in checkpoint_files(directory):
        problem = checkpoint_problem(path)
        if problem is None:
            for line in () if quiet else problems:
                warnings.warn(f"{line}; using the checkpoint before it", stacklevel=2)
            return SavedCheckpoint(path, _step(path))
        problems.append(f"{path}: {problem}")
    return None


def damaged_checkpoints(directory: Path) -> list[str]:
    """Describe the damage of every checkpoint, newest first.

    Empty for a first save that was interrupted, since no checkpoint was complete before it.
    """
    files = checkpoint_files(directory)
    if len(files) == 1 and not files[0].with_suffix(".json").exists():
        return []
    return [f"{path.name} {problem}" for path in files if (problem := checkpoint_problem(path)) is not None]


def _step(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def checkpoint_problem(path: Path) -> str | None:
    """Describe the damage of a checkpoint; None if its size and hash match its `.json`."""
    try:
        expected = read_json(path.with_suffix(".json"))
        size = path.stat().st_size
        if expected["step"] != _step(path):
            return f"unreadable (its .json is of step {expected['step']})"
        if size != expected["bytes"]:
            return f"truncated ({size} of {expected['bytes']} bytes)"
        with open(path, "rb") as file:
            return None if sha256(file) == expected["sha256"] else "corrupt (its hash is not that in its .json)"
    except FileNotFoundError:
        return "an interrupted save (it has no .json)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable ({error})"
