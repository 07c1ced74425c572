"""Source kind `files`: text files on this machine, named by file, glob or folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from cram_composer.config.paths import expand
from cram_composer.config.schema.data_build import FilesConfig
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.columns import ReadOptions, column_names
from cram_composer.data.pipeline.sources.folders import MDS_INDEX, expand_glob, find_files, read_mds_index
from cram_composer.data.pipeline.sources.formats import Format, format_names, format_of, guarded
from cram_composer.data.pipeline.sources.tables import read_mds_shard
from cram_composer.data.pipeline.text import Piece
from cram_composer.errors import CramError
from cram_composer.storage.paths import resolve_inside


def open_files(config: FilesConfig) -> list[Source]:
    """Open the files that `paths` names, each once, with folders and globs in sorted order. Raises CramError."""
    left_out: Counter[str] = Counter()
    paths: dict[str, Path] = {}
    for path in (path for text in config.paths for path in _expand_path(text, left_out, config)):
        paths.setdefault(os.path.realpath(path), path)
    options = ReadOptions(column_names(config), config.document)
    parts = [part for path in paths.values() for part in _parts(path, options, config.text_suffixes)]
    name = config.name or config.kind
    limits = config.max_characters, config.max_words
    return [Source(name, config.kind, config.licence, parts, {}, *limits, dict(left_out))]


def _expand_path(text: str, left_out: Counter[str], config: FilesConfig) -> list[Path]:
    path = expand(text)
    if path.is_dir():
        found = find_files(path, left_out, config.text_suffixes)
        if not found:
            names = " ".join([format_names(), *config.text_suffixes])
            raise CramError(f"{path}: no {names} files in this folder; for others, see text_suffixes")
        return found
    if path.is_file():
        return [path]
    found = expand_glob(path)
    if not found:
        raise CramError(f"{path}: no such file or folder, and no match as a glob; check sources.paths")
    return found


def _parts(path: Path, options: ReadOptions, text_suffixes: Sequence[str]) -> Iterator[Part]:
    if path.name == MDS_INDEX and (shards := read_mds_index(path)) is not None:
        for shard in shards:
            name = (shard["zip_data"] or shard["raw_data"])["basename"]
            file = resolve_inside(path.parent, name, str(path))
            yield _part(file, Format(partial(read_mds_shard, shard=shard), 1.0), options)
        return
    file_format = format_of(path, text_suffixes)
    if file_format is None:
        raise CramError(
            f"{path}: unsupported type of file; use {format_names()}, or add a suffix of plain text to text_suffixes"
        )
    yield _part(path, file_format, options)


def _part(path: Path, file_format: Format, options: ReadOptions) -> Part:
    if not path.is_file():
        raise CramError(f"{path}: missing")

    def read() -> Iterator[Piece]:
        return guarded(file_format.read(path, options), str(path))

    return Part(path.name, read, int(path.stat().st_size * file_format.expansion), path)
