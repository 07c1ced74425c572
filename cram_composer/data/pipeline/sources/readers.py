"""Readers of text files, one per format: each yields the pieces of a file's documents in order, in bounded memory."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from cram_composer.data.pipeline.text import PIECE_CHARACTERS, Piece, read_pieces
from cram_composer.errors import CramError

_MAX_LINE_BYTES = 64 << 20
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class Format(NamedTuple):
    """A file format: its reader, and roughly the bytes of text per byte on disk."""

    read: Callable[[Path, str, str], Iterator[Piece]]
    expansion: float


# The lines of a .txt file that end a document.
DOCUMENT_ENDS: dict[str, Callable[[str], bool]] = {
    "file": lambda line: False,
    "line": lambda line: line.endswith("\n"),
    "blank-line": lambda line: not line.strip(),
}


def document_pieces(text: str) -> Iterator[Piece]:
    """Yield the pieces of one document in memory. Lone surrogates, which JSON allows, become '?'."""
    text = text.encode("utf-8", "replace").decode()
    if len(text) <= PIECE_CHARACTERS:
        yield Piece(text, True)
    else:
        yield from read_pieces(io.StringIO(text), DOCUMENT_ENDS["file"])


def column_text(value: Any, column: str, where: str) -> str:
    """Return the text of a column's value, "" for null. Raises CramError for other types."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CramError(f"{where}: column '{column}' holds {type(value).__name__}, not text; set text_column")
    return value


def read_txt(path: Path, text_column: str, document: str) -> Iterator[Piece]:
    """Read UTF-8 text; `document` is a key of DOCUMENT_ENDS."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from read_pieces(file, DOCUMENT_ENDS[document])
    except UnicodeDecodeError as error:
        raise CramError(f"{path}: not UTF-8 text ({error.reason}); convert it first") from None
    except OSError as error:
        raise _read_error(path, error) from None


def read_jsonl(path: Path, text_column: str, document: str) -> Iterator[Piece]:
    """Read a JSON object per line, plain or compressed; every line is a document."""
    import pyarrow

    # Arrow's streams, unlike zstandard's, raise an error for a file that ends inside a compressed frame.
    compression = _COMPRESSIONS.get(path.suffix)
    try:
        with io.BufferedReader(pyarrow.input_stream(path, compression=compression, buffer_size=0), 1 << 17) as file:
            yield from _json_lines(path, file, text_column)
    except OSError as error:
        raise _read_error(path, error) from None


def _json_lines(path: Path, file: BinaryIO, text_column: str) -> Iterator[Piece]:
    number = 0
    while line := file.readline(_MAX_LINE_BYTES):
        number += 1
        if len(line) == _MAX_LINE_BYTES:
            raise CramError(f"{path}:{number}: the line is longer than {_MAX_LINE_BYTES >> 20} MiB; split the document")
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # also for invalid UTF-8
            raise CramError(f"{path}:{number}: not valid JSON: {error}") from None
        except RecursionError:
            raise CramError(f"{path}:{number}: not usable JSON: nested too deeply") from None
        if not isinstance(record, dict) or text_column not in record:
            found = ", ".join(list(record)[:8]) if isinstance(record, dict) else type(record).__name__
            raise CramError(f"{path}:{number}: no column '{text_column}' (found: {found}); set text_column")
        yield from document_pieces(column_text(record[text_column], text_column, f"{path}:{number}"))


def read_parquet(path: Path, text_column: str, document: str) -> Iterator[Piece]:
    """Read a column of a Parquet file page by page; every row is a document."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = file.schema_arrow.names
            if text_column not in names:
                raise CramError(f"{path}: no column '{text_column}' (found: {', '.join(names[:8])}); set text_column")
            for batch in file.iter_batches(batch_size=64, columns=[text_column], use_threads=False):
                for value in batch.column(0):
                    yield from document_pieces(column_text(value.as_py(), text_column, str(path)))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _read_error(path, error) from None


def _read_error(path: Path, error: Exception) -> CramError:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return CramError(f"{path}: cannot be read: {reason}")


FORMATS: dict[str, Format] = {
    ".txt": Format(read_txt, 1.0),
    ".jsonl": Format(read_jsonl, 1.0),
    ".jsonl.gz": Format(read_jsonl, 3.0),
    ".jsonl.zst": Format(read_jsonl, 4.0),
    ".parquet": Format(read_parquet, 2.0),
}


def format_of(path: Path) -> Format | None:
    """Return the format of a file by its name, None if there is no reader."""
    for suffix, format_ in FORMATS.items():
        if path.name.endswith(suffix):
            return format_
    return None
