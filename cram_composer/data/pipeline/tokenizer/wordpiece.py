"""WordPiece over BERT's words (Devlin et al. 2018)."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.tokenizer.common import MIN_COUNT, SPECIAL_TOKENS, alphabet, check_room, normalizer

_PREFIX = "##"


def wordpiece(sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool) -> Tokenizer:
    """The trainer of `tokenizers`, with its choices taken from it.

    It numbers the first pieces ("##a", "##b", ...) in the order of a hash map, and merges of equal
    frequency are ordered by those numbers, so that its vocabularies differ from run to run. Pieces that are declared as
    special tokens are numbered as declared: here all single characters are, in code point order, and the trainer is
    left with no choice that depends on a hash. They are ordinary pieces again in the tokenizer that is returned.
    """
    learner = _untrained({}, normalise)
    characters = alphabet(sample, learner.normalizer.normalize_str, config.limit_alphabet)
    continuing = [_PREFIX + c for c in characters if _continues_words(c, learner)]
    first = [*SPECIAL_TOKENS.values(), *continuing]
    check_room(config, len(first) + len(characters), len(characters))
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=MIN_COUNT,
        special_tokens=first,
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=_PREFIX,
        show_progress=show_progress,
    )
    learner.train([str(sample)], trainer)
    return _untrained(learner.get_vocab(), normalise)


def _continues_words(character: str, learner: Tokenizer) -> bool:
    """False for punctuation and Chinese characters, which are words by themselves."""
    return len(learner.pre_tokenizer.pre_tokenize_str(learner.normalizer.normalize_str("a" + character))) == 1


def _untrained(vocabulary: dict[str, int], normalise: NormaliseConfig) -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk"], continuing_subword_prefix=_PREFIX)
    )
    tokenizer.normalizer = normalizer(normalise)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_PREFIX)
    return tokenizer
