"""Parts shared by all kinds of tokenizers: special tokens, normalization, and the alphabet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.stages.clean import TYPOGRAPHIC
from cram_composer.errors import CramError

SPECIAL_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
MIN_COUNT = 2  # pieces that occur once are noise, and would fill the vocabulary of a small corpus
SPACE = "▁"  # stands for the space before a word, so that text can be restored
# A word, a number or a run of other characters, each with the space before it (GPT-2's rule less its English suffixes).
_WORDS = rf"{SPACE}?[\p{{L}}\p{{M}}]+|{SPACE}?\p{{N}}+|{SPACE}?[^{SPACE}\p{{L}}\p{{M}}\p{{N}}]+|{SPACE}"


def normalizer(config: NormaliseConfig, chinese_words: bool = True) -> normalizers.Normalizer:
    """Build the normalizer; `chinese_words` puts spaces around Chinese characters."""
    bert = normalizers.BertNormalizer(
        lowercase=config.lowercase, strip_accents=config.strip_accents, handle_chinese_chars=chinese_words
    )
    if not config.ascii_only:
        return bert
    steps = [normalizers.Replace(Regex(marks), ascii_) for marks, ascii_ in TYPOGRAPHIC.items()]
    return normalizers.Sequence([*steps, bert, normalizers.Replace(Regex(r"[^\x00-\x7F]+"), "")])


def configure_spaced_words(tokenizer: Tokenizer, normalise: NormaliseConfig) -> Tokenizer:
    """Configure a tokenizer whose words carry the space before them, from which the decoder restores the text."""
    tokenizer.normalizer = normalizer(normalise, chinese_words=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # "first": no space is added after a [MASK] without one
            pre_tokenizers.Metaspace(SPACE, prepend_scheme="first", split=False),
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(SPACE, prepend_scheme="first")
    return tokenizer


def most_frequent_characters(sample: Path, normalize: Callable[[str], str], limit: int) -> list[str]:
    """Return the `limit` most frequent characters after normalization (ties by code point), sorted.

    ASCII always counts as seen: characters missing from a small corpus may occur in fine-tuning.
    """
    counts = np.zeros(0x110000, np.int64)
    counts[ord("!") : ord("~") + 1] = 1
    with open(sample, encoding="utf-8", newline="\n") as file:
        for line in file:
            points, times = np.unique(np.frombuffer(line.encode("utf-32-le"), np.uint32), return_counts=True)
            counts[points] += times
    # Normalizing whole texts is slow; it acts on single characters, so it can be applied to the counts.
    normalised = np.zeros_like(counts)
    for point in np.flatnonzero(counts):
        for character in normalize(chr(point)):
            if not character.isspace():
                normalised[ord(character)] += counts[point]
    seen = np.flatnonzero(normalised)
    kept = seen[np.lexsort((seen, -normalised[seen]))][:limit]
    return [chr(point) for point in np.sort(kept)]


def check_alphabet_fits(config: TokenizerConfig, first: int, characters: int) -> None:
    """Raise CramError if the vocabulary cannot hold the alphabet, which needs `first` entries."""
    if first > config.vocab_size:
        raise CramError(
            f"tokenizer.vocab_size: {config.vocab_size} entries cannot hold the text's {characters} characters; "
            "raise it or lower tokenizer.limit_alphabet"
        )
