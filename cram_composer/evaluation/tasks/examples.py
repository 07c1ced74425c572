"""Read and check the rows of a task's split from local files or the hub, with the hub's column names."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from cram_composer.config.packages import require_package
from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.task import Example, Task, class_label
from cram_composer.storage.hub_errors import hub_refusal

T = TypeVar("T")

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class Split(NamedTuple):
    """Examples of a split in order, its number of rows, and the `official` (published) number of rows, 0 if none."""

    name: str
    examples: list[Example]
    rows: int
    official: int

    @property
    def is_complete(self) -> bool:
        """True if the split has the official number of rows, or there is no such number."""
        return not self.official or self.rows == self.official

    def only_from(self, label: float) -> Split:
        """Return the split with only the examples whose label is >= `label`. Raises CramError if there is none."""
        examples = [example for example in self.examples if cast(float, example.label) >= label]
        if not examples:
            raise CramError(f"{self.name}: no pair has a label >= {label:g}, so there is nothing to learn")
        return self._replace(examples=examples)

    def divide(self, share: float, name: str) -> list[Split]:
        """Return the examples without a random `share`, and that share under `name`; groups stay together.

        Raises:
            CramError: a part would be empty.
        """
        groups = [number if example.group is None else example.group for number, example in enumerate(self.examples)]
        distinct = list(dict.fromkeys(groups))
        order = np.random.default_rng(0).permutation(len(distinct))
        chosen = {distinct[number] for number in order[: round(share * len(distinct))]}
        parts: tuple[list[Example], list[Example]] = ([], [])
        for group, example in zip(groups, self.examples, strict=True):
            parts[group in chosen].append(example)
        if not all(parts):
            raise CramError(f"{self.name}: {len(distinct)} examples are too few to hold out {share:g} of them")
        return [Split(part, own, len(own), 0) for part, own in zip((self.name, name), parts, strict=True)]

    @property
    def digest(self) -> str:
        """Hash of the examples in order."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(json.dumps(example).encode())
        return digest.hexdigest()[:16]


def read_split(task: Task, name: str, data: Path | None) -> Split:
    """Read a split from the task's own file, `data`/TASK/SPLIT.jsonl[.zst|.gz], .tsv or .parquet, or the hub.

    Raises:
        CramError: a missing file or column, a value that is not text, or a label out of range.
    """
    if task.files:
        origin, rows = str(task.files[name]), (task.read or read_table)(task.files[name])
    else:
        origin, rows = _from_hub(task, name) if data is None else _from_files(task, name, data)
    examples: list[Example] = []
    count = 0
    for row in rows:
        _check_columns(task, row, f"{origin}, row {count + 1}")
        try:
            examples += _example_of_texts(task, row) if task.make_examples is None else task.make_examples(row, count)
        except ValueError as error:
            raise CramError(f"{origin}, row {count + 1}: {task.title}: {error}") from None
        count += 1
    if not count:
        raise CramError(f"{origin}: has no rows")
    return Split(name, examples, count, task.sizes[name])


def _check_columns(task: Task, row: Mapping[str, Any], origin: str) -> None:
    missing = [column for column in task.columns if row.get(column) is None]
    if missing:
        raise CramError(
            f"{origin}: {task.title} needs the columns {', '.join(task.columns)}; "
            f"missing: {', '.join(missing)} (found: {', '.join(map(str, row))})"
        )
    for column in task.texts:
        if not isinstance(row[column], str):
            raise CramError(f"{origin}: column '{column}' holds {type(row[column]).__name__}, not text")


def _example_of_texts(task: Task, row: Mapping[str, Any]) -> list[Example]:
    """Return the example of a row that consists of its texts and a label. Raises ValueError."""
    texts = tuple(row[column] for column in task.texts)
    if not task.is_regression:
        return [Example(texts, class_label(row["label"], task.labels))]
    low, high = task.score_range
    try:
        number = float(row["label"])
    except (TypeError, ValueError):
        number = math.nan
    if not low <= number <= high:
        raise ValueError(f"label must be a number from {low:g} to {high:g}, got {row['label']!r}")
    return [Example(texts, number)]


def read_table(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a file whose name ends as one of `_READERS`. Raises CramError."""
    for suffix, read in _READERS.items():
        if path.name.lower().endswith(suffix):
            return read_file(path, read)
    raise CramError(f"{path}: unknown type of file; use one of {', '.join(_READERS)}")


def _from_files(task: Task, name: str, data: Path) -> tuple[str, Iterator[Mapping[str, Any]]]:
    folder = data / task.name
    for suffix, read in _READERS.items():
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return str(path), read_file(path, read)
    if not folder.is_dir():
        present = sorted(p.name for p in data.iterdir() if p.is_dir()) if data.is_dir() else []
        raise CramError(f"{folder}: no such folder; found in {data}: {', '.join(present) or 'nothing'}")
    found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise CramError(f"{folder}: no split '{name}' ({', '.join(name + s for s in _READERS)}); found: {found}")


def read_file(path: Path, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
    """Yield the items of `read(path)`. Raises CramError with the file's name for system and format errors."""
    import pyarrow

    try:
        yield from read(path)
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise CramError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def read_jsonl_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and JSON objects of a .jsonl[.zst|.gz] file. Raises CramError for other lines."""
    import pyarrow

    with pyarrow.input_stream(path, compression=COMPRESSIONS.get(path.suffix)) as file:
        for number, line in enumerate(io.BufferedReader(file), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise CramError(f"{path}:{number}: not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise CramError(f"{path}:{number}: not a JSON object")
            yield number, row


def _read_jsonl(path: Path) -> Iterator[Mapping[str, Any]]:
    return (row for _, row in read_jsonl_objects(path))


def _read_tsv(path: Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:  # GLUE's files have quotes in texts, but no quoting
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets begin a file with a byte order mark
        yield from csv.DictReader(file, strict=True)


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
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _from_hub(task: Task, name: str) -> tuple[str, Iterator[Mapping[str, Any]]]:
    instead = ", or pass a folder of local files with --data"
    require_package("datasets", "tasks from the hub", "hub", instead)
    from datasets import load_dataset

    origin = f"{task.hub} ({task.hub_name or task.name}, {name}) on the hub"
    try:
        rows = load_dataset(task.hub, task.hub_name or task.name, split=name, revision=task.hub_revision)
    except (OSError, ValueError) as error:
        reason = hub_refusal(error) or str(error).splitlines()[0]
        raise CramError(f"{origin}: cannot be loaded ({reason}); pass a folder of local files with --data") from None
    return origin, iter(rows)
