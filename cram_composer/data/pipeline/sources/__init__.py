"""Sources of text by kind. To add one: settings in config/schema/data_build.py, a function and a line in `OPENERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cram_composer.config.schema.data_build import SourceConfig
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.files import open_files
from cram_composer.data.pipeline.sources.hub import open_hub
from cram_composer.data.pipeline.sources.starter import open_starter

__all__ = ["OPENERS", "Part", "Source", "open_sources"]

OPENERS: dict[str, Callable[[Any], list[Source]]] = {"starter": open_starter, "files": open_files, "hub": open_hub}


def open_sources(configs: Iterable[SourceConfig]) -> list[Source]:
    """Open every source without reading its text. Raises CramError for one that cannot be opened."""
    return [source for config in configs for source in OPENERS[config.kind](config)]
