"""Text of a record: one column or several, by name or by the path of a nested one."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from cram_composer.config.schema.data_build import TextColumns
from cram_composer.data.pipeline.text import PIECE_CHARACTERS, Piece, read_pieces

# The lines of a .txt file that end a document.
DOCUMENT_ENDS: dict[str, Callable[[str], bool]] = {
    "file": lambda line: False,
    "line": lambda line: line.endswith("\n"),
    "blank-line": lambda line: not line.strip(),
}
_JOINED_BY = "\n\n"


class RecordError(Exception):
    """A record without usable text."""


class ReadOptions(NamedTuple):
    """The columns that hold the text, and the part of a .txt file that makes a document, a key of DOCUMENT_ENDS."""

    columns: tuple[str, ...]
    document: str = "file"


def column_names(config: TextColumns) -> tuple[str, ...]:
    """Return the columns of a source's settings."""
    return (config.text_column,) if config.text_columns is None else tuple(config.text_columns)


def document_pieces(text: str) -> Iterator[Piece]:
    """Yield the pieces of one document in memory. Lone surrogates, which JSON allows, become '?'."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= PIECE_CHARACTERS:
        yield Piece(text, True)
    else:
        yield from read_pieces(io.StringIO(text), DOCUMENT_ENDS["file"])


def bad_record(problem: str) -> Piece:
    """Return the piece that stands for a record, or the rest of a file, that cannot be read."""
    return Piece("", True, problem)


def record_pieces(record: Any, columns: tuple[str, ...], where: str) -> Iterator[Piece]:
    """Yield the pieces of a record's text, or one with its problem."""
    try:
        text = record_text(record, columns)
    except RecordError as error:
        yield bad_record(f"{where}: {error}")
    else:
        yield from document_pieces(text)


def record_text(record: Any, columns: tuple[str, ...]) -> str:
    """Return the text of the columns, joined by an empty line, "" for null. Raises RecordError."""
    if len(columns) == 1:
        return _text_of(_look_up(record, columns[0]), columns[0])
    texts = (_text_of(_look_up(record, column), column) for column in columns)
    return _JOINED_BY.join(text for text in texts if text)


def has_column(names: Iterable[str], column: str) -> bool:
    """Return True if a top-level column is the column, or holds it if its name is a path."""
    return not {column, column.partition(".")[0]}.isdisjoint(names)


def missing_column(column: str, found: Iterable[str]) -> str:
    """Return the text of an error about a column that is not there."""
    return f"no column '{column}' (found: {', '.join(map(str, list(found)[:8]))}); set text_column"


def _look_up(record: Any, column: str) -> Any:
    if isinstance(record, Mapping) and column in record:
        return record[column]
    value = record
    for name in column.split("."):
        if not isinstance(value, Mapping) or name not in value:
            found = value if isinstance(value, Mapping) else [type(value).__name__]
            raise RecordError(missing_column(column, found))
        value = value[name]
        if value is None:
            return None
    return value


def _text_of(value: Any, column: str) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if not isinstance(value, bytes):
        raise RecordError(f"column '{column}' holds {type(value).__name__}, not text; set text_column")
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise RecordError(f"column '{column}' holds bytes that are not UTF-8 text") from None
