"""A task to fine-tune on: its input texts, labels, metrics and data."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple


class Example(NamedTuple):
    """One or two texts as input of the model, with a label: a class, or a number for a regression.

    For a task that tags words, `texts` are the words of a sentence and `label` has a class for each.
    Examples of one `group` are scored together, for example all answers of a question, several of which may be right.
    `credit`, from 0 to 1, is the value of choosing this example if it exceeds that of its label.
    """

    texts: tuple[str, ...]
    label: int | float | tuple[int, ...]
    group: Hashable = None
    credit: float = 0.0


@dataclass(frozen=True)
class Task:
    """A task on single texts or pairs.

    Attributes:
        head: output of the model: labels of the whole input or of every word, or an embedding of every text.
        similar_from: for embeddings, the lowest label of similar texts.
        labels: names of the label ids 0, 1, ...; empty for a regression, within `score_range` in benchmarks.
        metrics: names in `metrics`; the first one is the task's main metric.
        sizes: official number of rows of every split in use; 0 if there is none.
        scored: splits that are scored, in the order of tables.
        trained_on: a task without training rows is scored with the model fine-tuned on this task.
        other_columns: further columns, for tasks with `make_examples`.
        make_examples: converts a row and its number, from 0, to examples; raises ValueError for invalid values.
        files: file of every split, for a user's own data.
        read: yields the rows of a file; None to choose by the file's name.
        hub: the data set on the hub.
        hub_name: its configuration; empty for the task's name.
    """

    name: str
    title: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    sizes: dict[str, int] = field(hash=False)
    scored: tuple[str, ...] = ("validation",)
    score_range: tuple[float, float] = field(default=(0.0, 0.0))
    trained_on: str = ""
    other_columns: tuple[str, ...] = ()
    make_examples: Callable[[Mapping[str, Any], int], list[Example]] | None = None
    files: dict[str, Path] = field(default_factory=dict, hash=False)
    read: Callable[[Path], Iterator[Mapping[str, Any]]] | None = None
    head: Literal["sequence", "words", "embedding"] = "sequence"
    similar_from: float = 0.0
    hub: str = "nyu-mll/glue"
    hub_revision: str | None = None
    hub_name: str = ""

    @property
    def is_regression(self) -> bool:
        """True if labels are numbers."""
        return not self.labels

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a row must have."""
        return (*self.texts, *(self.other_columns if self.make_examples is not None else ("label",)))

    @property
    def num_labels(self) -> int:
        """Number of outputs of the model."""
        return max(1, len(self.labels))


def class_label(value: Any, names: Sequence[str]) -> int:
    """Return the class of a label that is stored as a number or as text. Raises ValueError."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if number not in range(len(names)):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise ValueError(f"label must be one of {known}, got {value!r}")
    return int(number)
