"""Masked-language-model masking (Devlin et al. 2018, section 3.1), vectorised over a batch, with static shapes."""

from cram_composer.data.masking.collator import (
    IGNORED,
    MaskedLMCollator,
    TokenWeights,
    build_collator,
    evaluation_collator,
    last_collator,
    mean_capacity,
)
from cram_composer.data.masking.words import word_joins

__all__ = [
    "IGNORED",
    "MaskedLMCollator",
    "TokenWeights",
    "build_collator",
    "evaluation_collator",
    "last_collator",
    "mean_capacity",
    "word_joins",
]
