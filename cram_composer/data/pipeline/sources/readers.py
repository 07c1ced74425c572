"""Readers of text files, one per format: each yields the pieces of a stream's documents in order, in bounded memory.

A record that cannot be read becomes a piece with its problem.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from typing import BinaryIO

from cram_composer.data.pipeline.sources.columns import (
    DOCUMENT_ENDS,
    ReadOptions,
    bad_record,
    has_column,
    missing_column,
    record_pieces,
)
from cram_composer.data.pipeline.text import Piece, read_pieces
from cram_composer.errors import CramError

_MAX_LINE_BYTES = 64 << 20
_MAX_JSON_BYTES = 256 << 20

Reader = Callable[[BinaryIO, str, ReadOptions], Iterator[Piece]]


def read_txt(file: BinaryIO, where: str, options: ReadOptions) -> Iterator[Piece]:
    """Read UTF-8 text."""
    return read_pieces(io.TextIOWrapper(file, encoding="utf-8-sig"), DOCUMENT_ENDS[options.document])


def read_jsonl(file: BinaryIO, where: str, options: ReadOptions) -> Iterator[Piece]:
    """Read a JSON object per line; every line is a document."""
    return _parse_lines(_lines(file), where, options)


def read_json(file: BinaryIO, where: str, options: ReadOptions) -> Iterator[Piece]:
    """Read a JSON object per line (as C4 has them in .json files), a list of objects, or one object."""
    lines = _lines(file)
    first = next((line for line in lines if line.strip()), b"").removeprefix(codecs.BOM_UTF8)
    if not first.lstrip().startswith(b"[") and _is_json(first):
        yield from _parse_lines(chain([first], lines), where, options)
        return
    content = first + file.read(_MAX_JSON_BYTES)
    if len(content) >= _MAX_JSON_BYTES:
        yield bad_record(f"{where}: larger than {_MAX_JSON_BYTES >> 20} MiB; convert it to .jsonl, an object per line")
        return
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # lines of which the first is damaged, or no JSON at all
        yield from read_jsonl(io.BytesIO(content), where, options)
        return
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        yield from record_pieces(record, options.columns, f"{where}:[{number}]")


def read_csv(file: BinaryIO, where: str, options: ReadOptions, delimiter: str = ",") -> Iterator[Piece]:
    """Read a table whose first row names the columns; every further row is a document."""
    csv.field_size_limit(_MAX_LINE_BYTES)
    # Bytes that are not UTF-8 spoil their row only.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    header = next(rows, [])
    for column in options.columns:
        if not has_column(header, column):
            raise CramError(f"{where}: {missing_column(column, header)}")
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            yield bad_record(f"{where}:{rows.line_num}: {error}")
            continue
        if row is None:
            return
        place = f"{where}:{rows.line_num}"
        if not row:
            continue
        if len(row) != len(header):
            yield bad_record(f"{place}: {len(row)} fields, but {len(header)} columns")
        elif any("\udc80" <= character <= "\udcff" for field in row if not field.isascii() for character in field):
            yield bad_record(f"{place}: not UTF-8 text")
        else:
            yield from record_pieces(dict(zip(header, row, strict=True)), options.columns, place)


READERS: dict[str, Reader] = {
    ".txt": read_txt,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
}


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long, only the beginning."""
    while line := file.readline(_MAX_LINE_BYTES):
        yield line
        if len(line) == _MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(_MAX_LINE_BYTES)


def _parse_lines(lines: Iterator[bytes], where: str, options: ReadOptions) -> Iterator[Piece]:
    for number, line in enumerate(lines, 1):
        if len(line) == _MAX_LINE_BYTES:
            size = _MAX_LINE_BYTES >> 20
            yield bad_record(f"{where}:{number}: the line is longer than {size} MiB; split the document")
            continue
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:  # also for invalid UTF-8
            yield bad_record(f"{where}:{number}: not valid JSON: {error}")
        except RecursionError:
            yield bad_record(f"{where}:{number}: not usable JSON: nested too deeply")
        else:
            yield from record_pieces(record, options.columns, f"{where}:{number}")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
