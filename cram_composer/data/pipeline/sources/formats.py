"""File formats by suffix: opening, decompression, and the reader of each."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cram_composer.data.pipeline.sources.columns import ReadOptions, bad_record
from cram_composer.data.pipeline.sources.readers import READERS, Reader
from cram_composer.data.pipeline.sources.tables import read_arrow, read_parquet
from cram_composer.data.pipeline.text import Piece
from cram_composer.errors import CramError

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}  # the name of each in pyarrow
_COMPRESSED = 3.5  # bytes of text per byte on disk


class Format(NamedTuple):
    """A file format: its reader, and roughly the bytes of text per byte on disk."""

    read: Callable[[Path, ReadOptions], Iterator[Piece]]
    expansion: float


def format_of(path: Path, text_suffixes: Sequence[str] = ()) -> Format | None:
    """Return the format of a file by its name in any case, None if there is no reader.

    Files with `text_suffixes`, which are in lower case, are read like .txt.
    """
    name = path.name.lower()
    for suffix, (read, expansion) in _TABLES.items():
        if name.endswith(suffix):
            return Format(read, expansion)
    if (found := _stream_format(name, text_suffixes)) is None:
        return None
    reader, codec = found
    return Format(partial(_read_stream, reader=reader, codec=codec), _COMPRESSED if codec else 1.0)


def count_txt(path: Path) -> int:
    """Return the number of .txt files that a file holds, each a document by default; 0 if it holds others too."""
    names = [path.name]
    if path.name.lower().endswith(".zip") and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
    found = [_stream_format(name.lower()) for name in names]
    return len(found) if all(each is not None and each[0] is READERS[".txt"] for each in found) else 0


def format_names() -> str:
    """List the suffixes that are read, for error messages."""
    return f"{' '.join([*READERS, *_TABLES])}, the first {len(READERS)} also with {' '.join(COMPRESSIONS)}"


def _stream_format(name: str, text_suffixes: Sequence[str] = ()) -> tuple[Reader, str | None] | None:
    codec = next((COMPRESSIONS[suffix] for suffix in COMPRESSIONS if name.endswith(suffix)), None)
    stem = name if codec is None else name.rpartition(".")[0]
    readers = dict.fromkeys(text_suffixes, READERS[".txt"]) | READERS
    return next(((readers[suffix], codec) for suffix in readers if stem.endswith(suffix)), None)


def _read_stream(path: Path, options: ReadOptions, reader: Reader, codec: str | None) -> Iterator[Piece]:
    import pyarrow

    # Arrow's streams, unlike zstandard's, raise an error for a file that ends inside a compressed frame.
    with io.BufferedReader(pyarrow.input_stream(str(path), compression=codec, buffer_size=0), 1 << 17) as file:
        yield from reader(file, str(path), options)


def _read_zip(path: Path, options: ReadOptions) -> Iterator[Piece]:
    """Read every text file in an archive, sorted by name."""
    import pyarrow

    with zipfile.ZipFile(path) as archive:
        members = sorted((info for info in archive.infolist() if not info.is_dir()), key=lambda info: info.filename)
        readable = [(info, found) for info in members if (found := _stream_format(info.filename.lower())) is not None]
        if not readable:
            raise CramError(f"{path}: holds no {' '.join(READERS)} file")
        for info, (reader, codec) in readable:
            where = f"{path}/{info.filename}"
            if info.flag_bits & 1:
                raise CramError(f"{where}: encrypted; unpack the archive first")
            with archive.open(info) as member:
                plain: Any = (
                    member if codec is None else pyarrow.CompressedInputStream(pyarrow.PythonFile(member), codec)
                )
                with io.BufferedReader(plain, 1 << 17) as file:
                    yield from guarded(reader(file, where, options), where)


_TABLES: dict[str, tuple[Callable[[Path, ReadOptions], Iterator[Piece]], float]] = {
    ".parquet": (read_parquet, 2.0),
    ".arrow": (read_arrow, 1.0),
    ".zip": (_read_zip, 3.0),
}


def guarded(pieces: Iterator[Piece], where: str) -> Iterator[Piece]:
    """Yield pieces; where the rest of a file cannot be read, one with the problem."""
    try:
        yield from pieces
    except UnicodeDecodeError as error:
        yield bad_record(f"{where}: not UTF-8 text ({error.reason}); convert it first")
    # Errors of the system, and of Arrow, csv, json, zipfile and Streaming in damaged files.
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        yield bad_record(f"{where}: cannot be read: {reason}")
