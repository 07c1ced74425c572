"""Branch points: checkpoints of a run that are kept permanently at given budget progress."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cram_composer.runs.checkpoints import checkpoint_files
from cram_composer.storage.files import link_or_copy, read_json, write_json

BRANCH_POINTS_FOLDER = "branch-points"


@dataclass(frozen=True)
class BranchPoint:
    """A kept checkpoint.

    Attributes:
        path: the `.pt` file.
        point: the requested progress.
        progress: progress at the start of the last step, equal to `point` or slightly above.
        step: number of steps done.
        elapsed: budget seconds spent.
        tokens: tokens fed to the model, summed over devices.
    """

    path: Path
    point: float
    progress: float
    step: int
    elapsed: float
    tokens: int


def list_branch_points(run: Path) -> list[BranchPoint]:
    """List the branch points of a run folder, earliest first; skip interrupted copies, which have no `.json`."""
    found = []
    for path in reversed(checkpoint_files(run / BRANCH_POINTS_FOLDER)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = read_json(path.with_suffix(".json"))
            numbers = (kept["point"], kept["progress"], int(kept["step"]), kept["elapsed"], int(kept["tokens"]))
            found.append(BranchPoint(path, *numbers))
    return found


class BranchPointSaver:
    """Saver of checkpoints at the requested points of a run's budget."""

    def __init__(self, run: Path, points: Sequence[float]) -> None:
        self._folder = run / BRANCH_POINTS_FOLDER
        saved = {point.point for point in list_branch_points(run)}
        self._pending = sorted(point for point in points if point not in saved)

    def is_due(self, progress: float) -> bool:
        """Return True if `progress` has reached a point that has no checkpoint yet."""
        return bool(self._pending) and progress >= self._pending[0]

    def take_due(self, progress: float) -> float | None:
        """Remove the points up to `progress` from the pending ones; return the last of them, None if there is none."""
        due = [point for point in self._pending if point <= progress]
        self._pending = self._pending[len(due) :]
        return due[-1] if due else None

    def save(self, checkpoint: Path, point: float, progress: float, elapsed: float, tokens: int) -> None:
        """Keep a newly saved checkpoint for a point, as a hard link if possible."""
        self._folder.mkdir(exist_ok=True)
        kept = self._folder / checkpoint.name
        temporary = self._folder / f".{checkpoint.name}.tmp"
        temporary.unlink(missing_ok=True)
        link_or_copy(checkpoint, temporary)
        os.replace(temporary, kept)
        metadata = read_json(checkpoint.with_suffix(".json"))
        write_json(
            kept.with_suffix(".json"),
            {**metadata, "point": point, "progress": progress, "elapsed": elapsed, "tokens": tokens},
        )
