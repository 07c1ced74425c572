"""The folder of a build in the making: its plan, what each task has found out, and the places that tasks share.

A task is one phase of the build for one partition. What it leaves is named after both, and its result is written last:
a task with a result is done, and a build that is started again goes on with the others.
"""

from __future__ import annotations

import shutil
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cram_composer.config.data_schema import DataBuildConfig
from cram_composer.data.text import SPLITS
from cram_composer.files import read_json, write_json

_PLAN = "plan.json"


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

    def begin(self, config: dict[str, Any], identity: str, inputs: list[Any]) -> bool:
        """Make the folder for a data set of this identity and input; False if there is one to be gone on with.

        What another configuration or other input files left is thrown away.
        """
        plan = {"identity": identity, "inputs": inputs, "config": config}
        try:
            found = read_json(self.root / _PLAN)
        except (OSError, ValueError):
            found = {}
        resumed = (found.get("identity"), found.get("inputs")) == (identity, inputs)
        if not resumed:
            shutil.rmtree(self.root, ignore_errors=True)
            self.out.mkdir(parents=True)
        write_json(self.root / _PLAN, plan)  # again when resuming: how the work is done may have changed
        return not resumed

    @cached_property
    def config(self) -> DataBuildConfig:
        """The configuration that the work was begun with."""
        values = read_json(self.root / _PLAN)["config"]
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataBuildConfig), values))  # type: ignore[return-value]

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

    def any_done(self) -> bool:
        """Whether there is anything that a next start could go on with."""
        return any(self.root.glob("done/*/*.json"))

    def _result(self, phase: str, partition: int) -> Path:
        return self.root / "done" / phase / f"{partition:05d}.json"
