"""Rows of a task's split, from local files with the hub's column names or from the hub, checked one by one."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cram_composer.errors import CramError
from cram_composer.evaluation.tasks import Task

T = TypeVar("T")

_HUB_DATASET = "nyu-mll/glue"
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class Split(NamedTuple):
    """Texts, one tuple of one or two for each row, and labels; `official` is the size that was published."""

    name: str
    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]
    official: int

    @property
    def is_whole(self) -> bool:
        """Whether it has the official number of rows."""
        return len(self.labels) == self.official

    @property
    def digest(self) -> str:
        """Of the texts and labels, in their order."""
        return hashlib.sha256(json.dumps([self.texts, self.labels]).encode()).hexdigest()[:16]


def read_split(task: Task, name: str, data: Path | None) -> Split:
    """A split from `data`/TASK/SPLIT.jsonl[.zst|.gz], .tsv or .parquet, or from the hub without `data`.

    Raises:
        CramError: there is no such file, a column is missing, a text is none, a label is out of range.
    """
    where, rows = _from_hub(task, name) if data is None else _from_files(task, name, data)
    texts: list[tuple[str, ...]] = []
    labels: list[Any] = []
    for number, row in enumerate(rows, start=1):
        texts.append(_texts(task, row, f"{where}, row {number}"))
        labels.append(_label(task, row["label"], f"{where}, row {number}"))
    if not labels:
        raise CramError(f"{where}: has no rows")
    return Split(name, texts, labels, task.sizes[name])


def _texts(task: Task, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    missing = [column for column in task.columns if row.get(column) is None]
    if missing:
        raise CramError(
            f"{where}: {task.title} needs the columns {', '.join(task.columns)}; "
            f"there is no {' and no '.join(missing)} (found: {', '.join(map(str, row))})"
        )
    for column in task.texts:
        if not isinstance(row[column], str):
            raise CramError(f"{where}: column '{column}' holds {type(row[column]).__name__}, not text")
    return tuple(row[column] for column in task.texts)


def _label(task: Task, value: Any, where: str) -> int | float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if task.is_regression:
        low, high = task.score_range
        if not low <= number <= high:
            raise CramError(f"{where}: label {value!r} is no number from {low:g} to {high:g}, as {task.title} has them")
        return number
    if number not in range(len(task.labels)):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(task.labels))
        raise CramError(f"{where}: label {value!r} is none of {known}, as {task.title} has them")
    return int(number)


def _from_files(task: Task, name: str, data: Path) -> tuple[str, Iterator[Mapping[str, Any]]]:
    folder = data / task.name
    for suffix, read in _READERS.items():
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return str(path), readable(path, read)
    if not folder.is_dir():
        present = sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
        raise CramError(f"{folder}: no such folder; found in {data}: {', '.join(present) or 'nothing'}")
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise CramError(f"{folder}: no split '{name}' ({', '.join(name + s for s in _READERS)}); found: {found}")


def readable(path: Path, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
    """What `read` makes of a file. Raises CramError, with the file's name, for what the system or a format refuses."""
    import pyarrow

    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise CramError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def numbered_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a .jsonl[.zst|.gz] file with the numbers of their lines. Raises CramError for other lines."""
    import pyarrow

    with pyarrow.input_stream(path, compression=_COMPRESSIONS.get(path.suffix)) as file:
        for number, line in enumerate(io.BufferedReader(file), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CramError(f"{path}:{number}: not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise CramError(f"{path}:{number}: not an object with columns")
            yield number, row


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    return (row for _, row in numbered_objects(path))


def _read_tsv(path: Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8", newline="") as file:  # GLUE's files quote nothing, and have quotes in texts
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


_READERS: dict[str, Callable[[Path], Iterator[Mapping[str, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".jsonl.zst": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}


def _from_hub(task: Task, name: str) -> tuple[str, Iterator[Mapping[str, Any]]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise CramError(
            "the hub's data need the package datasets: pip install 'cram-composer[hub]', or give the folder of the "
            "files with --data"
        ) from None
    where = f"{_HUB_DATASET} ({task.name}, {name}) of the hub"
    try:
        rows = load_dataset(_HUB_DATASET, task.name, split=name)
    except (OSError, ValueError) as error:
        raise CramError(
            f"{where}: cannot be had ({str(error).splitlines()[0]}); give the folder of the files with --data"
        ) from None
    return where, iter(rows)
