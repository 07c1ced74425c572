"""Sources of text by kind. A new kind is one function from SourceConfig to Sources and one line in SOURCE_KINDS."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from cram_composer.config.schema.data_build import SourceConfig
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.files import open_files
from cram_composer.data.pipeline.sources.hub import open_hub
from cram_composer.data.pipeline.sources.starter import open_starter
from cram_composer.errors import CramError

__all__ = ["SOURCE_KINDS", "Part", "Source", "open_sources"]


class SourceKind(NamedTuple):
    """The function that opens a kind of source, and the SourceConfig keys it reads besides the common ones."""

    open: Callable[[SourceConfig], list[Source]]
    keys: frozenset[str]


SOURCE_KINDS: dict[str, SourceKind] = {
    "starter": SourceKind(open_starter, frozenset()),
    "files": SourceKind(open_files, frozenset({"name", "licence", "paths", "text_column", "document"})),
    "hub": SourceKind(
        open_hub, frozenset({"name", "licence", "dataset", "subset", "split", "revision", "text_column"})
    ),
}


_OF_EVERY_KIND = ("kind", "max_characters", "stream")


def open_sources(configs: Iterable[SourceConfig]) -> list[Source]:
    """Open every source without reading its text. Raises CramError for a source that cannot be opened."""
    return [source for config in configs for source in _open(config)]


def _open(config: SourceConfig) -> list[Source]:
    kind = SOURCE_KINDS.get(config.kind)
    if kind is None:
        nearest = difflib.get_close_matches(config.kind, SOURCE_KINDS, n=1, cutoff=0.0)[0]
        known = ", ".join(SOURCE_KINDS)
        raise CramError(f"source kind '{config.kind}' is not one of {known}; did you mean '{nearest}'?")
    if config.max_characters is not None and config.max_characters < 1:
        raise CramError(f"source: max_characters is {config.max_characters}; it must be at least 1")
    default = SourceConfig()
    for key in (spec.name for spec in dataclasses.fields(SourceConfig)):
        read = key in kind.keys or key in _OF_EVERY_KIND
        if not read and getattr(config, key) != getattr(default, key):
            raise CramError(f"source kind '{config.kind}': the key '{key}' has no effect; remove it")
    return kind.open(config)
