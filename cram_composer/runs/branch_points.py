"""Checkpoints of a run that are kept for good, at points of its budget, so that others can go on from them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cram_composer.runs.checkpoints import checkpoint_files
from cram_composer.storage.files import link_or_copy, read_json, write_json

FOLDER = "branch-points"


@dataclass(frozen=True)
class BranchPoint:
    """A kept checkpoint.

    Attributes:
        path: the `.pt` file.
        point: the progress that was asked for.
        progress: of the budget when the step before it began, at `point` or right after.
        step: steps done.
        elapsed: seconds of the budget that were spent.
        tokens: fed to the model, over all devices.
    """

    path: Path
    point: float
    progress: float
    step: int
    elapsed: float
    tokens: int


def branch_points(run: Path) -> list[BranchPoint]:
    """Those of a run folder, the earliest first; a file without its `.json` is an interrupted copy."""
    found = []
    for path in reversed(checkpoint_files(run / FOLDER)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            kept = read_json(path.with_suffix(".json"))
            numbers = (kept["point"], kept["progress"], int(kept["step"]), kept["elapsed"], int(kept["tokens"]))
            found.append(BranchPoint(path, *numbers))
    return found


class BranchPoints:
    """The points of one run that are still ahead."""

    def __init__(self, run: Path, points: Sequence[float]) -> None:
        self._folder = run / FOLDER
        done = {one.point for one in branch_points(run)}
        self._ahead = sorted(point for point in points if point not in done)

    def due(self, progress: float) -> bool:
        """Whether a point has been reached at which nothing was kept yet."""
        return bool(self._ahead) and progress >= self._ahead[0]

    def passed(self, progress: float) -> None:
        """Take what `progress` has reached off the list."""
        self._ahead = [point for point in self._ahead if point > progress]

    def keep(self, checkpoint: Path, progress: float, elapsed: float, tokens: int) -> None:
        """Keep a checkpoint that has just been saved: by a second name for the file where the disk can do that."""
        self._folder.mkdir(exist_ok=True)
        kept = self._folder / checkpoint.name
        temporary = self._folder / f".{checkpoint.name}.tmp"
        temporary.unlink(missing_ok=True)
        link_or_copy(checkpoint, temporary)
        os.replace(temporary, kept)
        saved = read_json(checkpoint.with_suffix(".json"))
        point = max(point for point in self._ahead if point <= progress)
        write_json(
            kept.with_suffix(".json"),
            {**saved, "point": point, "progress": progress, "elapsed": elapsed, "tokens": tokens},
        )
