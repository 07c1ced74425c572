"""Coverage of a build's text by its tokenizer: refuse text that is mostly lost, and advise on settings."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from cram_composer.config.schema.data_build import DataBuildConfig
from cram_composer.data.pipeline.progress import print_status
from cram_composer.data.pipeline.tokenizer.tokenizer import BuiltTokenizer
from cram_composer.errors import CramError

SAMPLE_BYTES = 1 << 20  # enough text to measure
_EXCERPTS = 64  # spread over the sample, because it has the sources one after another
_MAX_WORD = 100  # characters; WordPiece makes [UNK] of longer words
_MOSTLY = 0.5
_NOTICEABLE = 0.01
_FEW_CHARACTERS, _MANY_CHARACTERS = 0.9, 20.0  # per token; Chinese characters that are words by themselves have 1.0
_NOTICEABLE_ACCENTS = 0.005  # per character: English has fewer, other languages with accents at least twice as many


class Coverage(NamedTuple):
    """Counts over a sample of text, without spaces.

    Attributes:
        characters: apart from combining marks.
        tokens: number of tokens.
        long_words: characters in [UNK] for words of more than 100 characters.
        unknown: characters in other [UNK].
        removed: characters that normalization removes.
        accents: combining marks that normalization removes, also from composed characters.
    """

    characters: int
    tokens: int
    long_words: int
    unknown: int
    removed: int
    accents: int

    @property
    def lost(self) -> float:
        """Share of the characters that no token represents."""
        return (self.long_words + self.unknown + self.removed) / max(self.characters, 1)


def check_coverage(sample: Path, built: BuiltTokenizer, config: DataBuildConfig, progress: bool) -> None:
    """Measure a sample of text; print advice where the tokenizer loses some. Raises CramError where it loses most."""
    found = measure_coverage(sample, built.backend, built.special_tokens["unk"])
    problem = f"{found.lost:.1%} of the characters become [UNK] or are removed; {_remedy(found, config)}"
    if found.lost > _MOSTLY:
        raise CramError(f"tokenizer: {problem}")
    for advice in _advice(found, config, problem):
        print_status(progress, f"warning: {advice}")


def _advice(found: Coverage, config: DataBuildConfig, problem: str) -> Iterator[str]:
    if found.lost > _NOTICEABLE:
        yield f"tokenizer: {problem}"
    if (accents := found.accents / max(found.characters, 1)) > _NOTICEABLE_ACCENTS and config.tokenizer.path is None:
        yield (
            f"normalise.strip_accents: removes {100 * accents:.1f} accents or vowel signs per 100 characters, which "
            "suits English; if they distinguish words of this language, set normalise.strip_accents=false"
        )
    if found.tokens and found.characters / found.tokens < _FEW_CHARACTERS:
        yield f"tokenizer: {characters_per_token_problem(found.characters, found.tokens)}"


def characters_per_token_problem(characters: int, tokens: int) -> str | None:
    """Return the problem of an extreme number of characters per token, None for a usual one."""
    ratio = characters / max(tokens, 1)
    if ratio < _FEW_CHARACTERS:
        return (
            f"{ratio:.2f} characters per token: the vocabulary is too small for this text; raise tokenizer.vocab_size "
            "or tokenizer.sample_bytes, or use a tokenizer of this language"
        )
    if ratio > _MANY_CHARACTERS:
        return f"{ratio:.0f} characters per token: much of the text may be lost; set tokenizer.kind=byte-bpe"
    return None


def _remedy(found: Coverage, config: DataBuildConfig) -> str:
    if config.tokenizer.path is not None:
        return "tokenizer.path does not suit this text; remove it to train a tokenizer"
    if found.removed > found.long_words + found.unknown:
        return "set normalise.ascii_only=false"
    if found.long_words > found.unknown:
        return f"words of more than {_MAX_WORD} characters are [UNK] in WordPiece; set tokenizer.kind=byte-bpe"
    return (
        "characters outside the alphabet are unknown; set tokenizer.kind=byte-bpe, or raise tokenizer.limit_alphabet "
        f"({config.tokenizer.limit_alphabet})"
    )


def measure_coverage(sample: Path, backend: Tokenizer, unknown_id: int) -> Coverage:
    """Measure excerpts from a file of lines."""
    counts: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    for text in _excerpts(sample):
        encoding = backend.encode(text, add_special_tokens=False)
        fate = ["removed"] * len(text)
        for (start, end), token in zip(encoding.offsets, encoding.ids, strict=True):
            known = "unknown" if end - start <= _MAX_WORD else "long_words"
            fate[start:end] = ["kept" if token != unknown_id else known] * (end - start)
        counts["tokens"] += len(encoding.ids)
        for character, end_state in zip(text, fate, strict=True):
            kind = kinds.setdefault(character, unicodedata.category(character)[0])
            if kind not in "MZC":  # format characters and spaces are no loss; accents are counted below
                counts["characters"] += 1
                counts[end_state] += 1
        normalised = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        counts["accents"] += max(_count_marks(text) - _count_marks(normalised), 0)
    return Coverage(*(counts[name] for name in Coverage._fields))


def _excerpts(sample: Path) -> Iterator[str]:
    """Yield text from equally spaced places, about SAMPLE_BYTES in all."""
    size = sample.stat().st_size
    length = SAMPLE_BYTES // _EXCERPTS
    places = range(0, size, length) if size <= SAMPLE_BYTES else range(0, size - length, size // _EXCERPTS)
    with open(sample, "rb") as file:
        for place in places:
            file.seek(place)
            data = file.read(length)
            yield from data.decode("utf-8", "ignore").splitlines()


def _count_marks(text: str) -> int:
    if text.isascii():
        return 0
    return sum(unicodedata.category(character) == "Mn" for character in unicodedata.normalize("NFD", text))
