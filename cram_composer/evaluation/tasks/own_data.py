"""Tasks made of a user's own files: texts or pairs of texts with classes or numbers, sentences with entities."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cram_composer.config.paths import expand
from cram_composer.config.schema.evaluation import OwnTaskConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.conll import OUTSIDE, read_conll
from cram_composer.evaluation.tasks.examples import read_table
from cram_composer.evaluation.tasks.task import Example, Task

_MAX_FRACTIONS = 20  # classes that are numbers with fractions, such as ratings of half stars


@functools.lru_cache(maxsize=64)
def own_task(name: str, settings: str) -> Task:
    """Return the task of a user's files; `settings` is an OwnTaskConfig as JSON.

    The classes, or the scale of the numbers, are those of the train file.

    Raises:
        CramError: the train file cannot be read or lacks a column, or its labels cannot be learnt.
    """
    own = OwnTaskConfig.model_validate_json(settings)
    files = {"train": Path(expand(own.train)), "validation": Path(expand(own.validation))}
    if own.type == "ner":
        return _ner_task(name, files)
    texts = (own.text,) if own.text_pair is None else (own.text, own.text_pair)
    classifies = own.type == "classification"
    labels: tuple[str, ...] = ()
    convert: _Classified | _Scaled
    if classifies:
        labels = _class_names(own.label, files["train"])
        convert = _Classified(texts, own.label, labels)
    else:
        numbers = list(_labels(own.label, files["train"], _number))
        spread = statistics.pstdev(numbers) if numbers else 1.0
        if not spread:
            raise CramError(f"{files['train']}: every '{own.label}' is {numbers[0]:g}, so there is nothing to learn")
        convert = _Scaled(texts, own.label, statistics.fmean(numbers), spread)
    return Task(
        name,
        name,
        texts,
        labels,
        ("accuracy", "macro_f1") if classifies else ("pearson", "spearman"),
        dict.fromkeys(files, 0),
        other_columns=(own.label,),
        make_examples=convert,
        files=files,
    )


def _ner_task(name: str, files: dict[str, Path]) -> Task:
    """Return the task of finding the types of entities of both files."""
    types = {tag[2:] for file in files.values() for row in read_conll(file) for tag in row["tags"] if tag != OUTSIDE}
    if not types:
        raise CramError(f"{files['train']}: every tag is {OUTSIDE}, so there is nothing to learn")
    labels = (OUTSIDE, *(f"{prefix}-{kind}" for kind in sorted(types) for prefix in "BI"))
    return Task(
        name,
        name,
        (),
        labels,
        ("span_f1", "span_precision", "span_recall"),
        dict.fromkeys(files, 0),
        other_columns=("words", "tags"),
        make_examples=_Tagged(labels),
        files=files,
        read=read_conll,
        head="words",
    )


@dataclass(frozen=True)
class _Tagged:
    """Converts a sentence to an example with the indices of its tags in `labels`."""

    labels: tuple[str, ...]

    def __call__(self, row: Mapping[str, Any], number: int) -> list[Example]:
        return [Example(tuple(row["words"]), tuple(self.labels.index(tag) for tag in row["tags"]))]


@dataclass(frozen=True)
class _Classified:
    """Converts a row to an example with the index of its class in `names`."""

    texts: tuple[str, ...]
    label: str
    names: tuple[str, ...]

    def __call__(self, row: Mapping[str, Any], number: int) -> list[Example]:
        name = _class_name(row[self.label])
        if name not in self.names:
            raise ValueError(f"label '{name}' is not in the train file, which has {_listed(self.names)}")
        return [Example(tuple(row[column] for column in self.texts), self.names.index(name))]


@dataclass(frozen=True)
class _Scaled:
    """Converts a row to an example with its number in units of the train file's mean and deviation."""

    texts: tuple[str, ...]
    label: str
    mean: float
    spread: float

    def __call__(self, row: Mapping[str, Any], number: int) -> list[Example]:
        scaled = (_number(row[self.label]) - self.mean) / self.spread
        return [Example(tuple(row[column] for column in self.texts), scaled)]


def _class_names(column: str, file: Path) -> tuple[str, ...]:
    """Return the classes of the train file in order: integers by size, names by letters. Raises CramError."""
    names = set(_labels(column, file, _class_name))
    if len(names) == 1:
        raise CramError(f"{file}: every '{column}' is '{names.pop()}', so there is nothing to learn")
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    if len(names) > _MAX_FRACTIONS and all(_is_number(name) for name in names):
        raise CramError(f"{file}: '{column}' has {len(names)} different numbers; use type regression")
    return tuple(sorted(names))


def _labels(column: str, file: Path, convert: Any) -> Iterator[Any]:
    """Yield the converted labels of a file's rows with a value; others are found when the examples are read."""
    for number, row in enumerate(read_table(file), start=1):
        if row.get(column) is None:
            known = ", ".join(map(str, row))
            raise CramError(f"{file}, row {number}: no column '{column}' with the label; its columns: {known}")
        try:
            yield convert(row[column])
        except ValueError as error:
            raise CramError(f"{file}, row {number}: {error}") from None


def _class_name(value: Any) -> str:
    """Return a label as text; integers of a column with gaps are floats in Parquet files. Raises ValueError."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"label {value!r} is not a class; use type regression for numbers")
    if isinstance(value, int | float):
        return str(int(value))
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"label must be a text or an integer, got {value!r}")
    return value.strip()


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _number(value: Any) -> float:
    """Return a finite number. Raises ValueError."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"label must be a number, got {value!r}; use type classification for classes")
    return number


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
