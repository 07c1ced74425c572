"""Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909) of characters, and of bytes (Radford et al. 2019).

Numbering is deterministic: the alphabet by code point, merges by frequency and then by number.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.tokenizer.common import (
    MIN_COUNT,
    SPACE,
    SPECIAL_TOKENS,
    check_alphabet_fits,
    configure_spaced_words,
    most_frequent_characters,
    normalizer,
)
from cram_composer.errors import CramError


def bpe(sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool) -> Tokenizer:
    """Train BPE on characters; characters outside the alphabet are [UNK]."""
    tokenizer = configure_spaced_words(Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS["unk"], fuse_unk=True)), normalise)
    characters = most_frequent_characters(sample, tokenizer.normalizer.normalize_str, config.limit_alphabet)
    first = sorted({*characters, SPACE})
    check_alphabet_fits(config, len(SPECIAL_TOKENS) + len(first), len(characters))
    tokenizer.train([str(sample)], _trainer(config, first, show_progress))
    return tokenizer


def byte_bpe(sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool) -> Tokenizer:
    """Train BPE on bytes; no character is unknown."""
    first = sorted(pre_tokenizers.ByteLevel.alphabet())
    if len(SPECIAL_TOKENS) + len(first) > config.vocab_size:
        raise CramError(
            f"tokenizer.vocab_size: {config.vocab_size} entries cannot hold the {len(first)} bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens; raise it to {len(SPECIAL_TOKENS) + len(first)} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer(normalise, chinese_words=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # A space before the first word, but none after a [MASK]: ByteLevel's own option would add both.
            pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.train([str(sample)], _trainer(config, first, show_progress))
    return tokenizer


def _trainer(config: TokenizerConfig, first: list[str], show_progress: bool) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=MIN_COUNT,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=first,
        limit_alphabet=len(first),
        show_progress=show_progress,
    )
