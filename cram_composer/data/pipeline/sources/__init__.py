"""Sources of text by kind. To add one: settings in config/schema/data_build.py, a function and a line in `OPENERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, SourceConfig
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.files import open_files
from cram_composer.data.pipeline.sources.hub import open_hub
from cram_composer.data.pipeline.sources.starter import open_starter
from cram_composer.data.pipeline.text import Piece
from cram_composer.errors import CramError

__all__ = ["OPENERS", "Part", "Source", "open_build_sources", "open_sources", "source_configs", "validation_share"]

OPENERS: dict[str, Callable[[Any], list[Source]]] = {"starter": open_starter, "files": open_files, "hub": open_hub}


def source_configs(config: DataBuildConfig) -> list[SourceConfig]:
    """Return the sources of a build; the files of `validation`, if it has them, come last."""
    if config.validation is None:
        return config.sources
    return [*config.sources, FilesConfig(name="validation", **config.validation.model_dump())]


def validation_share(config: DataBuildConfig, source: int) -> float:
    """Return the share of a source's documents that are held out, by its index in `source_configs`."""
    return config.validation_fraction if config.validation is None else float(source == len(config.sources))


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
