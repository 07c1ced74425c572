"""The work folder of a data build: its plan, the results of its tasks, and folders that tasks share.

A task is one phase of the build for one partition. Its files are named after both, and its result is written last: a
task with a result is done, and a restarted build runs only the others.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.data.pipeline.sources import held_out_files
from cram_composer.data.pipeline.text import SPLITS
from cram_composer.errors import CramError
from cram_composer.storage.files import read_json, write_json

_PLAN = "plan.json"
_MARKER = ".cram-build"  # marks the folder as safe to remove


class Workspace:
    """Paths and task results of the build in the folder `root`, shared by all its processes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._results: dict[str, list[Any]] = {}

    @property
    def out(self) -> Path:
        """Folder of the data set under construction."""
        return self.root / "out"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.out / "tokenizer"

    def read_plan(self) -> dict[str, Any] | None:
        """Return the plan of an interrupted build; None if there is none to resume."""
        try:
            return read_json(self.root / _PLAN) if self.out.is_dir() else None
        except (OSError, ValueError):
            return None

    def begin(self, config: dict[str, Any], key: list[Any]) -> bool:
        """Create the folder for the build that `key` identifies; return False if there is one to resume.

        Removes the work of another build. Raises CramError for a folder that is not a work folder.
        """
        found = self.read_plan()
        resumed = found is not None and found["key"] == key
        if not resumed:
            self.remove()
            self.root.mkdir(parents=True)
            (self.root / _MARKER).touch()
            self.out.mkdir()
        # The configuration may differ in how the work is done.
        write_json(self.root / _PLAN, {"key": key, "config": config})
        return not resumed

    def remove(self) -> None:
        """Remove the folder, the plan first, so that an interrupted removal is never resumed."""
        if not self.root.exists():
            return
        if not (self.root / _MARKER).is_file() and any(self.root.iterdir()):
            raise CramError(f"work: {self.root} already exists and is not a work folder; choose another folder")
        (self.root / _PLAN).unlink(missing_ok=True)
        mark = self.root / _MARKER
        for path in self.root.iterdir():
            if path != mark:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        mark.unlink(missing_ok=True)
        self.root.rmdir()

    @cached_property
    def config(self) -> DataBuildConfig:
        """Configuration of the build."""
        return DataBuildConfig.model_validate(read_json(self.root / _PLAN)["config"])

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits: the train streams, validation, and the further held-out sets."""
        return list(dict.fromkeys([*self.streams, SPLITS[1], *held_out_files(self.config)]))

    @cached_property
    def streams(self) -> list[str]:
        """Names of the train splits: `train`, or one per stream that the sources name."""
        names = [self.stream_name(i) for i in range(len(self.config.sources))]
        return list(dict.fromkeys(names))

    def stream_name(self, source: int) -> str:
        """Return the split of a source by its index in `source_configs`: the train stream of one that is divided."""
        if source >= len(self.config.sources):
            return list(held_out_files(self.config))[source - len(self.config.sources)]
        name = self.config.sources[source].stream
        return SPLITS[0] if name is None else f"{SPLITS[0]}-{name}"

    def folder(self, *names: str) -> Path:
        """Return a folder for files that tasks exchange, creating it if necessary."""
        path = self.root.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def is_done(self, phase: str, partition: int = 0) -> bool:
        """Return True if a task has written its result."""
        return self._result_path(phase, partition).is_file()

    def result(self, phase: str, partition: int = 0) -> Any | None:
        """Return the result of a task, None if it is not done."""
        try:
            return read_json(self._result_path(phase, partition))
        except FileNotFoundError:
            return None

    def results(self, phase: str) -> list[Any]:
        """Return the results of a finished phase by partition."""
        if phase not in self._results:
            partitions = range(self.config.partitions)
            self._results[phase] = [read_json(self._result_path(phase, partition)) for partition in partitions]
        return self._results[phase]

    def mark_done(self, phase: str, partition: int, result: Any) -> None:
        """Write the result of a task, which marks it as done."""
        write_json(self._result_path(phase, partition), result)

    def token_counts(self, phase: str, split: str) -> NDArray:
        """Sum the counts [vocab_size] of token ids in a split over the partitions."""
        paths = [self._counts_path(phase, split, partition) for partition in range(self.config.partitions)]
        total = np.load(paths[0])
        for path in paths[1:]:
            total += np.load(path)
        return total

    def save_token_counts(self, phase: str, split: str, partition: int, counts: NDArray) -> None:
        """Save the token counts [vocab_size] of a task outside its result, which every task of the next phase reads."""
        np.save(self._counts_path(phase, split, partition), counts)

    def _counts_path(self, phase: str, split: str, partition: int) -> Path:
        return self.folder("counts") / f"{phase}.{split}.{partition:05d}.npy"

    def has_results(self) -> bool:
        """Return True if any task is done, so that a restart can resume."""
        return any(self.root.glob("done/*/*.json"))

    def _result_path(self, phase: str, partition: int) -> Path:
        return self.root / "done" / phase / f"{partition:05d}.json"
