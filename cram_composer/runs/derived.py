"""Runs made from another run: branches and extensions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cram_composer.config import Composed
from cram_composer.errors import CramError
from cram_composer.runs.reproduce import train_command
from cram_composer.storage.paths import plain_name


@dataclass(frozen=True)
class DerivedRun:
    """A run that is ready for training.

    Attributes:
        yaml: its configuration, in its run folder.
        composed: the same.
        devices: to train on.
        origin: what it was made from.
    """

    yaml: Path
    composed: Composed
    devices: int
    origin: str

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.yaml.parent


def unused_folder(beside: Path, name: str, yaml: str) -> Path:
    """Return the folder `name` beside a run. Raises CramError if it exists, or if `name` is a path."""
    path = beside.parent / plain_name(name, "--name")
    if path.exists():
        raise CramError(f"{path}: already exists; continue it with `{train_command(path / yaml)}`, or use --name")
    return path
