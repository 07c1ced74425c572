"""WordPiece over BERT's words (Devlin et al. 2018)."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.tokenizer.common import (
    MIN_COUNT,
    SPECIAL_TOKENS,
    check_alphabet_fits,
    most_frequent_characters,
    normalizer,
)

_PREFIX = "##"


def wordpiece(sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool) -> Tokenizer:
    """Train WordPiece with the trainer of `tokenizers`, made deterministic.

    The trainer numbers the first pieces ("##a", "##b", ...) in the order of a hash map and breaks ties between merges
    by these numbers, so its vocabularies differ from run to run. Special tokens are numbered as declared: declaring all
    single characters as special tokens, in code point order, leaves no choice that depends on a hash. They are ordinary
    pieces again in the returned tokenizer.
    """
    trained = _build_tokenizer({}, normalise)
    characters = most_frequent_characters(sample, trained.normalizer.normalize_str, config.limit_alphabet)
    continuing = [_PREFIX + c for c in characters if _continues_words(c, trained)]
    first = [*SPECIAL_TOKENS.values(), *continuing]
    check_alphabet_fits(config, len(first) + len(characters), len(characters))
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=MIN_COUNT,
        special_tokens=first,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=_PREFIX,
        show_progress=show_progress,
    )
    trained.train([str(sample)], trainer)
    return _build_tokenizer(trained.get_vocab(), normalise)


def _continues_words(character: str, trained: Tokenizer) -> bool:
    """Return False for punctuation and Chinese characters, which are words by themselves."""
    return len(trained.pre_tokenizer.pre_tokenize_str(trained.normalizer.normalize_str("a" + character))) == 1


def _build_tokenizer(vocabulary: dict[str, int], normalise: NormaliseConfig) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"], continuing_subword_prefix=_PREFIX)
    )
    tokenizer.normalizer = normalizer(normalise)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    return tokenizer
