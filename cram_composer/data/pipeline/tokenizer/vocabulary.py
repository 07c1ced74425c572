"""Training of tokenizers by kind, deterministic for a given sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from cram_composer.config.schema.data_build import NormaliseConfig, TokenizerConfig
from cram_composer.data.pipeline.tokenizer.bpe import bpe, byte_bpe
from cram_composer.data.pipeline.tokenizer.unigram import unigram
from cram_composer.data.pipeline.tokenizer.wordpiece import wordpiece
from cram_composer.errors import CramError

KINDS: dict[str, Callable[[Path, TokenizerConfig, NormaliseConfig, bool], Tokenizer]] = {
    "bpe": bpe,
    "byte-bpe": byte_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
}


def train_tokenizer(
    sample: Path, config: TokenizerConfig, normalise: NormaliseConfig, show_progress: bool = False
) -> Tokenizer:
    """Train a tokenizer of `config.kind` on the lines of `sample`; special tokens get the first ids.

    The same sample gives the same tokenizer in any process and with any number of threads.

    Raises:
        CramError: the sample has no text, or the vocabulary cannot hold the alphabet.
    """
    if not sample.stat().st_size:
        raise CramError("sources: no text in the train split for the tokenizer; add text or change validation_fraction")
    return KINDS[config.kind](sample, config, normalise, show_progress)
