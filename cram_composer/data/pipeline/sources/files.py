"""Source kind `files`: text files on this machine, named by file, glob or folder."""

from __future__ import annotations

import glob
from functools import partial
from pathlib import Path

from cram_composer.config.paths import expand
from cram_composer.config.schema.data_build import FilesConfig
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.readers import FORMATS, format_of
from cram_composer.errors import CramError


def open_files(config: FilesConfig) -> list[Source]:
    """Open the files that `paths` names, each once, with folders and globs in sorted order. Raises CramError."""
    paths = dict.fromkeys(path for text in config.paths for path in _expand_path(text))
    parts = [_part(path, config) for path in paths]
    return [Source(config.name or config.kind, config.kind, config.licence, parts, {}, config.max_characters)]


def _expand_path(text: str) -> list[Path]:
    path = expand(text)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and format_of(p) is not None)
        if not found:
            raise CramError(f"{path}: no {' '.join(FORMATS)} files in this folder")
        return found
    if path.is_file():
        return [path]
    matched = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    found = [p for p in matched if p.is_file()]
    if not found:
        raise CramError(f"{path}: no such file or folder, and no match as a glob; check sources.paths")
    return found


def _part(path: Path, config: FilesConfig) -> Part:
    file_format = format_of(path)
    if file_format is None:
        raise CramError(f"{path}: unsupported type of file; use {' '.join(FORMATS)}")
    size = path.stat().st_size
    read = partial(file_format.read, path, config.text_column, config.document)
    return Part(path.name, read, int(size * file_format.expansion), path)
