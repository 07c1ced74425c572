"""Filters: each returns the reason to drop a document, or None to keep it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.config.schema.data_build import LanguageConfig, LengthConfig, QualityConfig
from cram_composer.errors import CramError

_BULLETS = ("•", "‣", "▪", "●", "◦", "■", "·", "- ", "* ")  # a dash or star may also begin speech or a footnote
_ELLIPSES = ("...", "…")
_LETTER = re.compile(r"[^\W\d_]")
_HEAD_CHARACTERS = 2048
_WORD = re.compile(r"[^\W\d_]+")


def length(text: str, config: LengthConfig) -> str | None:
    """Filter by the number of characters."""
    if len(text) < config.min_characters:
        return "too-short"
    if config.max_characters is not None and len(text) > config.max_characters:
        return "too-long"
    return None


def quality(text: str, config: QualityConfig) -> str | None:
    """Apply Gopher's rules for natural text (Rae et al. 2021, arXiv 2112.11446, section A1.1), the cheapest first.

    Words are separated by white space. The rule of the same list about English stop words is in `language`.
    """
    words = text.split()
    count = len(words)
    if count < config.min_words:
        return "too-few-words"
    if count > config.max_words:
        return "too-many-words"
    if not count:
        return None
    mean_length = len("".join(words)) / count
    if mean_length < config.min_mean_word_length:
        return "short-words"
    if mean_length > config.max_mean_word_length:
        return "long-words"
    if text.count("#") > config.max_symbol_ratio * count:
        return "hash-signs"
    if sum(map(text.count, _ELLIPSES)) > config.max_symbol_ratio * count:
        return "ellipses"
    return _check_lines(text, config) or _check_words(words, config)


def _check_lines(text: str, config: QualityConfig) -> str | None:
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    if sum(line.startswith(_BULLETS) for line in lines) > config.max_bullet_lines * len(lines):
        return "bullet-lines"
    if sum(line.endswith(_ELLIPSES) for line in lines) > config.max_ellipsis_lines * len(lines):
        return "ellipsis-lines"
    return None


def _check_words(words: list[str], config: QualityConfig) -> str | None:
    needed = config.min_alphabetic_words * len(words)
    # Most words consist of letters only, which is faster to test than that a word contains a letter.
    mixed = [word for word in words if not word.isalpha()]
    found = len(words) - len(mixed)
    if found < needed:
        found += sum(map(bool, map(_LETTER.search, mixed)))
    return "few-alphabetic-words" if found < needed else None


def language(text: str, config: LanguageConfig) -> str | None:
    """Filter by the most common words of the language and by the script of the letters, if there are any."""
    stop_words = tuple(config.stop_words)
    # Stop words usually occur early; the head ends at a space so that no word is torn.
    head = text[: text.rfind(" ", 0, _HEAD_CHARACTERS) + 1]
    if not any(_count_stop_words(part, stop_words) >= config.min_stop_words for part in (head, text)):
        return "few-stop-words"
    if text.isascii() and config.script == "LATIN":
        return None
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    _, other, wanted = np.bincount(_script_table(config.script)[points], minlength=3)
    return "other-script" if wanted < config.min_script * (other + wanted) else None


def _count_stop_words(text: str, stop_words: tuple[str, ...]) -> int:
    """Return the number of distinct stop words in a text."""
    return len(_casefold_all(stop_words).intersection(_WORD.findall(text.casefold())))


@lru_cache(maxsize=8)
def _casefold_all(words: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(str.casefold, words))


@lru_cache(maxsize=8)
def _script_table(script: str) -> NDArray[np.uint8]:
    """Return [0x110000] by code point: 0 for no letter, 2 for a letter of `script`, 1 for other letters."""
    table = np.zeros(0x110000, np.uint8)
    for point in range(0x110000):
        character = chr(point)
        if character.isalpha():
            table[point] = 1 + (unicodedata.name(character, "").split(" ")[0] == script)
    if 2 not in table:
        raise CramError(
            f"stages.language.script: no letter's Unicode name begins with '{script}'; "
            "use LATIN, CYRILLIC, GREEK, ARABIC, HEBREW, DEVANAGARI, CJK, HIRAGANA or HANGUL"
        )
    return table


# In the order of the StagesConfig fields of the same names.
FILTERS: dict[str, Callable[[str, Any], str | None]] = {"length": length, "quality": quality, "language": language}
