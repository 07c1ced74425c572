"""Sources of text by kind. To add one: settings in config/schema/data_build.py, a function and a line in `OPENERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, SourceConfig, TextFiles
from cram_composer.data.manifest_checks import HELD_OUT
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.files import open_files
from cram_composer.data.pipeline.sources.hub import open_hub
from cram_composer.data.pipeline.sources.starter import open_starter
from cram_composer.data.pipeline.text import Piece
from cram_composer.errors import CramError

__all__ = [
    "OPENERS",
    "Part",
    "Source",
    "held_out_files",
    "held_out_share",
    "open_build_sources",
    "open_sources",
    "source_configs",
]

OPENERS: dict[str, Callable[[Any], list[Source]]] = {"starter": open_starter, "files": open_files, "hub": open_hub}


def held_out_files(config: DataBuildConfig) -> dict[str, TextFiles]:
    """Return the files that are held out as a whole, by split: of `validation`, if it has any, and of `held_out`."""
    validation = {} if config.validation is None else {"validation": config.validation}
    return validation | {f"{HELD_OUT}{name}": files for name, files in config.held_out.items()}


def source_configs(config: DataBuildConfig) -> list[SourceConfig]:
    """Return the sources of a build, followed by the files that are held out."""
    held_out = held_out_files(config).items()
    return [*config.sources, *(FilesConfig(name=split, **files.model_dump()) for split, files in held_out)]


def held_out_share(config: DataBuildConfig, source: int) -> float:
    """Return the share of a source's documents that are held out, by its index in `source_configs`."""
    if source >= len(config.sources):
        return 1.0
    return config.validation_fraction if config.validation is None else 0.0


def open_sources(configs: Iterable[SourceConfig], skip_bad_records: bool = False, advice: str = "") -> list[Source]:
    """Open every source without reading its text. Raises CramError for one that cannot be opened.

    Reading it raises CramError with `advice` for a record that cannot be read; with `skip_bad_records` it yields a
    piece with the problem instead.
    """
    opened = [source for config in configs for source in OPENERS[config.kind](config)]
    if skip_bad_records:
        return opened
    return [
        replace(source, parts=[replace(part, pieces=partial(_checked, part, advice)) for part in source.parts])
        for source in opened
    ]


def open_build_sources(config: DataBuildConfig, configs: Iterable[SourceConfig]) -> list[Source]:
    """Open sources of a build, which can skip bad records."""
    return open_sources(configs, config.on_bad_record == "skip", "; mend it, or set on_bad_record=skip")


def _checked(part: Part, advice: str) -> Iterator[Piece]:
    for piece in part.pieces():
        if piece.problem is not None:
            raise CramError(f"{piece.problem}{advice}")
        yield piece
