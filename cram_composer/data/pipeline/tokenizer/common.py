"""What every kind of vocabulary shares: special tokens, normalisation, and the characters it is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.stages.clean import TYPOGRAPHIC
from cram_composer.errors import CramError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MIN_COUNT = 2  # a piece of a word that is there once is noise, and would fill the vocabulary of a small corpus
SPACE = "▁"  # stands for the space before a word, so that text comes back as it was
# A word, a number or a run of other characters, each with the space before it (GPT-2's rule less its English suffixes).
_WORDS = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}+|{SPACE}?[^{SPACE}\p{{L}}\p{{M}}\p{{N}}]+|{SPACE}"


def normalizer(config: NormaliseConfig, chinese_words: bool = True) -> normalizers.Normalizer:
    """What happens to text before it is split into words; with `chinese_words`, Chinese characters get spaces."""
    bert = normalizers.BertNormalizer(
        lowercase=config.lowercase, strip_accents=config.strip_accents, handle_chinese_chars=chinese_words
    )
    if not config.ascii_only:
        return bert
    steps = [normalizers.Replace(Regex(marks), ascii_) for marks, ascii_ in TYPOGRAPHIC.items()]
    return normalizers.Sequence([*steps, bert, normalizers.Replace(Regex(r"[^\x00-\x7F]+"), "")])


def spaced(tokenizer: Tokenizer, normalise: NormaliseConfig) -> Tokenizer:
    """Give a tokenizer words that carry the space before them, which its decoder turns back into text."""
    tokenizer.normalizer = normalizer(normalise, chinese_words=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # "first": what follows a [MASK] without a space is not given one
            pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="first")
    return tokenizer


def alphabet(sample: Path, normalize: Callable[[str], str], limit: int) -> list[str]:
    """The `limit` most frequent characters after normalisation, ties by code point, sorted.

    ASCII counts as seen: a character that a small corpus lacks may turn up in fine-tuning.
    """
    counts = np.zeros(0x110000, np.int64)
    counts[ord("!") : ord("~") + 1] = 1
    with open(sample, encoding="utf-8", newline="\n") as file:
        for line in file:
            points, times = np.unique(np.frombuffer(line.encode("utf-32-le"), np.uint32), return_counts=True)
            counts[points] += times
    # Normalising whole texts is slow; it acts on one character at a time, so that the counts may come first.
    normalised = np.zeros_like(counts)
    for point in np.flatnonzero(counts):
        for character in normalize(chr(point)):
            if not character.isspace():
                normalised[ord(character)] += counts[point]
    seen = np.flatnonzero(normalised)
    kept = seen[np.lexsort((seen, -normalised[seen]))][:limit]
    return [chr(point) for point in np.sort(kept)]


def check_room(config: TokenizerConfig, first: int, characters: int) -> None:
    """Raise CramError if the vocabulary cannot hold the `first` entries that are made of so many characters."""
    if first > config.vocab_size:
        raise CramError(
            f"tokenizer.vocab_size: {config.vocab_size} entries cannot hold the text's {characters} characters; "
            "raise it or lower tokenizer.limit_alphabet"
        )
