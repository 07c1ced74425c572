"""Sentences with a tag for every word, from files in the columns of CoNLL (Tjong Kim Sang and De Meulder 2003)."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.examples import COMPRESSIONS, read_file

OUTSIDE = "O"
_PREFIXES = {"B": "B", "I": "I", "E": "I", "L": "I", "S": "B", "U": "B"}  # of IOB, IOBES and BILOU


def read_conll(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the `words` and the `tags` of every sentence of a file.

    A line has a word in its first column and its tag in its last, separated by tabs or else spaces; an empty line ends
    a sentence. Lines of -DOCSTART-, and comments before a sentence, are skipped. Tags of IOBES and BILOU become IOB.

    Raises:
        CramError: a file that cannot be read, or a line without a word and a tag.
    """
    return read_file(path, _sentences)


def _sentences(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow

    words: list[str] = []
    tags: list[str] = []
    with pyarrow.input_stream(path, compression=COMPRESSIONS.get(path.suffix)) as file:
        for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"), start=1):
            columns = [column for column in line.strip().split("\t" if "\t" in line.strip() else " ") if column.strip()]
            if not columns or columns[0] == "-DOCSTART-":
                if words:
                    yield {"words": words, "tags": tags}
                words, tags = [], []
                continue
            tag = _tag(columns[-1]) if len(columns) > 1 else None
            if tag is None and not words and columns[0].startswith("#"):
                continue
            if tag is None:
                raise CramError(
                    f"{path}:{number}: must have a word in the first column and O, B-TYPE or I-TYPE in the last, "
                    f"got {line.strip()[:60]!r}"
                )
            words.append(columns[0])
            tags.append(tag)
    if words:
        yield {"words": words, "tags": tags}


def _tag(text: str) -> str | None:
    """Return a tag in IOB; None if it is no tag."""
    if text == OUTSIDE:
        return text
    prefix, dash, kind = text.partition("-")
    return f"{_PREFIXES[prefix]}-{kind}" if dash and kind and prefix in _PREFIXES else None
