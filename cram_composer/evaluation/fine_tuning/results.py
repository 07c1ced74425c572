"""Results of an evaluation: one line per task and seed in a file, and their averages."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from cram_composer.config.schema.evaluation import FineTuningConfig, FineTuningProtocol, ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.benchmarks import tasks_of

# Protocol settings that do not affect a score.
IRRELEVANT_TO_SCORES = (
    "kind",
    "name",
    "benchmark",
    "tasks",
    "not_averaged",
    "seeds",
    "overrides",
    "eval_batch_size",
    "grid",
)

ResultKey = tuple[str, str, str, int]  # model's hash, settings' hash, task, seed


@dataclass(frozen=True)
class Result:
    """Scores of one task with one seed."""

    model: str
    model_hash: str
    settings_hash: str
    benchmark: str
    task: str
    seed: int
    scores: dict[str, dict[str, float]]  # percent, by split and metric
    rows: dict[str, int]  # by split
    partial: list[str]  # splits without the official number of rows
    mnli_start: bool
    steps: int
    seconds: float
    examples_per_second: float
    train_loss: float
    device: str
    precision: str

    @property
    def key(self) -> ResultKey:
        """Identity of the result."""
        return self.model_hash, self.settings_hash, self.task, self.seed


def settings_hash(settings: FineTuningConfig, digests: dict[str, str], precision: str) -> str:
    """Hash everything that determines a task's scores except model and seed; `digests` are those of the splits."""
    values = {
        key: value
        for key, value in settings.model_dump(mode="json", exclude_none=True).items()  # later settings are null
        if key not in IRRELEVANT_TO_SCORES
    }
    text = json.dumps([values, digests, precision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class KeyedResult(Protocol):
    """A dataclass that is a line of a results file."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def key(self) -> tuple[Any, ...]:
        """Identity of the result."""


R = TypeVar("R", bound=KeyedResult)


def append_result(path: Path, result: KeyedResult) -> None:
    """Append a line to the results file atomically, after ending an incomplete last line of a killed process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(asdict(result), ensure_ascii=False, allow_nan=False) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_results(path: Path) -> list[Result]:
    """Read the fine-tuning results in a file; see `read_result_lines`."""
    return read_result_lines(path, Result)


def read_result_lines(path: Path, kind: type[R]) -> list[R]:
    """Read a results file; of several lines with the same key, the last one counts. A torn line is skipped.

    Raises:
        CramError: a complete line is not a result.
    """
    found: dict[tuple[Any, ...], R] = {}
    if not path.is_file():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        try:
            result = kind(**values)
        except TypeError as error:
            raise CramError(f"{path}:{number}: not a result of this version ({error}); move the file away") from None
        found[result.key] = result
    return list(found.values())


def averages(results: Iterable[Result], protocol: FineTuningProtocol) -> dict[str, dict[str, Any]]:
    """Compute named averages of medians over seeds: `mean` (None without results) and `missing`, tasks without results.

    GLUE has two. "nine-number mean" is the paper's (Geiping and Goldstein 2022, arXiv 2212.14034, table 3): one number
    per task, its first metric, and two for MNLI. "eight-task mean" uses the mean of a task's numbers. Other benchmarks
    have only the latter, as "mean of tasks"; a user's own tasks have none.
    """
    if not isinstance(protocol, ProtocolConfig):
        return {}
    by_task: dict[str, list[Result]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    tasks = [task for task in tasks_of(protocol).values() if task.name not in protocol.not_averaged]
    found = [task for task in tasks if task.name in by_task]
    missing = [task.name for task in tasks if task.name not in by_task]
    firsts = [
        statistics.median(result.scores[split][task.metrics[0]] for result in by_task[task.name])
        for task in found
        for split in task.scored
    ]
    of_tasks = [
        statistics.fmean(
            statistics.median(result.scores[split][metric] for result in by_task[task.name])
            for split in task.scored
            for metric in task.metrics
        )
        for task in found
    ]
    named = (
        {"nine-number mean": firsts, "eight-task mean": of_tasks}
        if protocol.benchmark == "glue"
        else {"mean of tasks": of_tasks}
    )
    return {
        name: {"mean": statistics.fmean(numbers) if numbers else None, "missing": missing}
        for name, numbers in named.items()
    }
