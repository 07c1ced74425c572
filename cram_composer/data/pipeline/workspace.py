"""The folder of a build in the making: its plan, what each task has found out, and the places that tasks share.

A task is one phase of the build for one partition. What it leaves is named after both, and its result is written last:
a task with a result is done, and a build that is started again goes on with the others.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.data.pipeline.text import SPLITS
from cram_composer.errors import CramError
from cram_composer.storage.files import read_json, write_json

_PLAN = "plan.json"
_MARK = ".cram-build"  # says that the folder is ours to remove


class Work:
    """Paths and results of the build in the folder `root`, which every process that works on it can see."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._results: dict[str, list[Any]] = {}

    @property
    def out(self) -> Path:
        """The data set as it grows."""
        return self.root / "out"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.out / "tokenizer"

    def plan(self) -> dict[str, Any] | None:
        """What the work was begun for; None where there is no work that could be gone on with."""
        try:
            return read_json(self.root / _PLAN) if self.out.is_dir() else None
        except (OSError, ValueError):
            return None

    def begin(self, config: dict[str, Any], key: list[Any]) -> bool:
        """Make the folder for what `key` identifies; False if there is one for it already, to be gone on with.

        What was left of other work is thrown away. Raises CramError for a folder that is no work of a build.
        """
        found = self.plan()
        resumed = found is not None and found["key"] == key
        if not resumed:
            self.remove()
            self.root.mkdir(parents=True)
            (self.root / _MARK).touch()
            self.out.mkdir()
        # Again when resuming: how the work is done may have changed.
        write_json(self.root / _PLAN, {"key": key, "config": config})
        return not resumed

    def remove(self) -> None:
        """Remove the folder, the plan first: what is left of it if this is interrupted is not gone on with."""
        if not self.root.exists():
            return
        if not (self.root / _MARK).is_file() and any(self.root.iterdir()):
            raise CramError(f"work: {self.root} is there already and is not the work of a build; choose another folder")
        (self.root / _PLAN).unlink(missing_ok=True)
        mark = self.root / _MARK
        for path in self.root.iterdir():
            if path != mark:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        mark.unlink(missing_ok=True)
        self.root.rmdir()

    @cached_property
    def config(self) -> DataBuildConfig:
        """The configuration that the work was begun with."""
        return DataBuildConfig.model_validate(read_json(self.root / _PLAN)["config"])

    @cached_property
    def splits(self) -> list[str]:
        """Names of the splits: the train streams, then validation."""
        return [*self.streams, SPLITS[1]]

    @cached_property
    def streams(self) -> list[str]:
        """Names of the train splits: `train`, or one for every stream that a source names."""
        names = [self.stream_of(i) for i in range(len(self.config.sources))]
        return list(dict.fromkeys(names))

    def stream_of(self, source: int) -> str:
        """Train split of a source, by its place in the configuration."""
        name = self.config.sources[source].stream
        return SPLITS[0] if name is None else f"{SPLITS[0]}-{name}"

    def folder(self, *names: str) -> Path:
        """A folder for what tasks hand to each other; made if need be."""
        path = self.root.joinpath(*names)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def is_done(self, phase: str, partition: int = 0) -> bool:
        """Whether a task has left its result."""
        return self._result(phase, partition).is_file()

    def result(self, phase: str, partition: int = 0) -> Any | None:
        """What a task found out; None if it is not done."""
        try:
            return read_json(self._result(phase, partition))
        except FileNotFoundError:
            return None

    def results(self, phase: str) -> list[Any]:
        """Results of a finished phase by partition."""
        if phase not in self._results:
            partitions = range(self.config.partitions)
            self._results[phase] = [read_json(self._result(phase, partition)) for partition in partitions]
        return self._results[phase]

    def done(self, phase: str, partition: int, result: Any) -> None:
        """Say that a task is done."""
        write_json(self._result(phase, partition), result)

    def counts(self, phase: str, split: str) -> NDArray:
        """Counts [vocab_size] of every id in a split, summed over the partitions as `save_counts` left them."""
        paths = [self._counts(phase, split, partition) for partition in range(self.config.partitions)]
        total = np.load(paths[0])
        for path in paths[1:]:
            total += np.load(path)
        return total

    def save_counts(self, phase: str, split: str, partition: int, counts: NDArray) -> None:
        """Keep counts [vocab_size] of a task; not in its result, which every task of the next phase reads."""
        np.save(self._counts(phase, split, partition), counts)

    def _counts(self, phase: str, split: str, partition: int) -> Path:
        return self.folder("counts") / f"{phase}.{split}.{partition:05d}.npy"

    def any_done(self) -> bool:
        """Whether there is anything that a next start could go on with."""
        return any(self.root.glob("done/*/*.json"))

    def _result(self, phase: str, partition: int) -> Path:
        return self.root / "done" / phase / f"{partition:05d}.json"
