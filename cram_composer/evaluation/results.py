"""Results of an evaluation: one line per task and seed, appended to one file, and what is made of them."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cram_composer.config.evaluation_schema import ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.tasks import GLUE

# What of a protocol decides a score; its name, its tasks and its number of seeds do not.
_NOT_OF_A_SCORE = ("name", "tasks", "not_averaged", "seeds", "overrides", "eval_batch_size")


@dataclass(frozen=True)
class Result:
    """One task with one seed."""

    model: str
    model_hash: str
    settings_hash: str
    task: str
    seed: int
    scores: dict[str, dict[str, float]]  # percent, by split and metric
    rows: dict[str, int]  # by split
    partial: list[str]  # splits that have not the official number of rows
    mnli_start: bool
    steps: int
    seconds: float
    examples_per_second: float
    train_loss: float

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes it a result of its own."""
        return self.model_hash, self.settings_hash, self.task, self.seed


def settings_hash(settings: ProtocolConfig, rows: dict[str, int], precision: str) -> str:
    """Of everything that decides a task's scores but the model and the seed."""
    values = {key: value for key, value in asdict(settings).items() if key not in _NOT_OF_A_SCORE}
    text = json.dumps([values, rows, precision], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append_result(path: Path, result: Result) -> None:
    """Add a line to the results file, whole or not at all: a torn last line of a kill is ended first."""
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
    """What is in a results file, the last of several lines for the same; a torn line is left out.

    Raises:
        CramError: a whole line is no result.
    """
    found: dict[tuple[str, str, str, int], Result] = {}
    if not path.is_file():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        try:
            result = Result(**values)
        except TypeError as error:
            raise CramError(f"{path}:{number}: not a result of this version ({error}); move the file away") from None
        found[result.key] = result
    return list(found.values())


def task_score(task: str, results: Sequence[Result]) -> dict[str, float]:
    """The median over seeds of every number that tables show of a task, by "metric" or "split metric"."""
    found = GLUE[task]
    several = len(found.scored) > 1
    return {
        f"{split} {metric}" if several else metric: statistics.median(r.scores[split][metric] for r in results)
        for split in found.scored
        for metric in found.metrics
    }


def nine_numbers(results: Iterable[Result], not_averaged: Sequence[str]) -> tuple[float | None, list[str]]:
    """The paper's average: one number per task, two for MNLI (matched and mismatched), and the tasks that are missing.

    A task with several metrics counts with the first of them (Geiping and Goldstein 2022, arXiv 2212.14034, table 3).
    """
    return _average(results, not_averaged, merged=False)


def eight_tasks(results: Iterable[Result], not_averaged: Sequence[str]) -> tuple[float | None, list[str]]:
    """The mean over tasks, in which the numbers of a task count as their mean, and the tasks that are missing."""
    return _average(results, not_averaged, merged=True)


def _average(results: Iterable[Result], not_averaged: Sequence[str], merged: bool) -> tuple[float | None, list[str]]:
    by_task: dict[str, list[Result]] = {}
    for result in results:
        by_task.setdefault(result.task, []).append(result)
    wanted = [task for task in GLUE if task not in not_averaged]
    numbers: list[float] = []
    for task in wanted:
        if task not in by_task:
            continue
        found = GLUE[task]
        if merged:
            numbers.append(statistics.fmean(task_score(task, by_task[task]).values()))
        else:
            first = found.metrics[0]
            numbers += [statistics.median(r.scores[split][first] for r in by_task[task]) for split in found.scored]
    missing = [task for task in wanted if task not in by_task]
    return (statistics.fmean(numbers) if numbers else None), missing
