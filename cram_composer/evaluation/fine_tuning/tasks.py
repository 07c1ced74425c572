"""The tasks of GLUE (Wang et al. 2018, arXiv 1804.07461): columns and labels as on the hub, official sizes, metrics."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    """What a model sees of a row by itself: one or two texts, and the label, a class or a number to come close to.

    Candidates of one `group` are scored together: the answers to a question, of which any or just one may be right.
    `credit`, from 0 to 1, is what choosing this one is worth where that is more than its label says.
    """

    texts: tuple[str, ...]
    label: int | float
    group: Hashable = None
    credit: float = 0.0


@dataclass(frozen=True)
class Task:
    """A task on one text or on pairs.

    `labels` are the names of the label ids 0, 1, ...; a task without labels is a regression within `score_range`.
    `sizes` holds the official number of rows of every split that is used; `scored` are the splits that are scored, in
    the order in which tables show them. A task that is `trained_on` another has no training rows: the model of that
    task is scored on it. The first metric of METRICS that a task names decides between seeds.

    A task whose rows are not just its texts and a label has more columns, `others`, and `candidates`: a function of a
    row and its number, from 0, which raises ValueError where they do not hold what they should.

    On the hub it is the configuration `hub_name` (its own name, if empty) of the data set `hub`.
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
    others: tuple[str, ...] = ()
    candidates: Callable[[Mapping[str, Any], int], list[Candidate]] | None = None
    hub: str = "nyu-mll/glue"
    hub_revision: str | None = None
    hub_name: str = ""

    @property
    def is_regression(self) -> bool:
        """Whether labels are numbers to come close to."""
        return not self.labels

    @property
    def columns(self) -> tuple[str, ...]:
        """What a row must have."""
        return (*self.texts, *(self.others if self.candidates is not None else ("label",)))

    @property
    def num_labels(self) -> int:
        """Outputs of a model for it."""
        return max(1, len(self.labels))


def class_label(value: Any, names: Sequence[str]) -> int:
    """The class that `value` means, also where a file holds numbers as text. Raises ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number not in range(len(names)):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise ValueError(f"label {value!r} is none of {known}")
    return int(number)


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
        Task("wnli", "WNLI", _PAIR, _ENTAILMENT[::-1], ("accuracy",), {"train": 635, "validation": 71}),
    )
}
