"""The tasks of GLUE (Wang et al. 2018, arXiv 1804.07461): columns and labels as on the hub, official sizes, metrics."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field

from cram_composer.errors import CramError


@dataclass(frozen=True)
class Task:
    """A task on one text or on pairs.

    `labels` are the names of the label ids 0, 1, ...; a task without labels is a regression within `score_range`.
    `sizes` holds the official number of rows of every split that is used; `scored` are the splits that are scored, in
    the order in which tables show them. A task that is `trained_on` another has no training rows: the model of that
    task is scored on it. The first metric of METRICS that a task names decides between seeds.
    """

    name: str
    title: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    sizes: dict[str, int]
    scored: tuple[str, ...] = ("validation",)
    score_range: tuple[float, float] = field(default=(0.0, 0.0))
    trained_on: str = ""

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers to come close to."""
        return not self.labels

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row must have."""
        return (*self.texts, "label")

    @property
    def num_labels(self) -> int:
        """Outputs of a model for it."""
        return max(1, len(self.labels))


_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

GLUE: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "cola",
            "CoLA",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews",),
            {"train": 8551, "validation": 1043},
        ),
        Task(
            "sst2",
            "SST-2",
            ("sentence",),
            ("negative", "positive"),
            ("accuracy",),
            {"train": 67349, "validation": 872},
        ),
        Task(
            "mrpc",
            "MRPC",
            _PAIR,
            ("not_equivalent", "equivalent"),
            ("f1", "accuracy"),
            {"train": 3668, "validation": 408},
        ),
        Task(
            "stsb",
            "STS-B",
            _PAIR,
            (),
            ("pearson", "spearman"),
            {"train": 5749, "validation": 1500},
            score_range=(0.0, 5.0),
        ),
        Task(
            "qqp",
            "QQP",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("f1", "accuracy"),
            {"train": 363846, "validation": 40430},
        ),
        Task(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            {"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
            scored=("validation_matched", "validation_mismatched"),
        ),
        Task(
            "qnli",
            "QNLI",
            ("question", "sentence"),
            _ENTAILMENT,
            ("accuracy",),
            {"train": 104743, "validation": 5463},
        ),
        Task("rte", "RTE", _PAIR, _ENTAILMENT, ("accuracy",), {"train": 2490, "validation": 277}),
        Task("wnli", "WNLI", _PAIR, _ENTAILMENT, ("accuracy",), {"train": 635, "validation": 71}),
    )
}


BENCHMARKS: dict[str, dict[str, Task]] = {"glue": GLUE}


def find_task(name: str, asked_by: str, benchmark: str = "glue") -> Task:
    """The task `name` of a benchmark; `asked_by` is what to blame if there is none. Raises CramError."""
    tasks = BENCHMARKS[benchmark]
    if name not in tasks:
        nearest = difflib.get_close_matches(name, tasks, n=1, cutoff=0.0)[0]
        raise CramError(
            f"{asked_by}: there is no task '{name}'; did you mean '{nearest}'? There are {', '.join(tasks)}"
        )
    return tasks[name]
