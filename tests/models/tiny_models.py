"""Small models, batches and tokenizers for the tests of models."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM

SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
WORDS = ["the", "river", "flows", "into", "sea", "a", "king", "was", "born", "."]
VOCAB_SIZE = len(SPECIAL) + len(WORDS)


def tiny_config(**changes) -> CramBertConfig:
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return CramBertConfig(**{**sizes, "intermediate_size": 32, "max_position_embeddings": 24, **changes})


def tiny_model(**changes) -> CramBertForMaskedLM:
    torch.manual_seed(0)
    return CramBertForMaskedLM(tiny_config(**changes))


def training_batch(rows: int = 3, length: int = 16, masked: int = 5, vocab_size: int = 40) -> dict[str, torch.Tensor]:
    """Build a batch like the collator's; the last slot of row 0 is unused and repeats the position of another slot."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(vocab_size, (rows, length), generator=generator)
    positions = torch.stack([torch.randperm(length, generator=generator)[:masked] for _ in range(rows)])
    labels = torch.randint(vocab_size, (rows, masked), generator=generator)
    positions[0, -1], labels[0, -1] = positions[0, 0], -100
    return {"input_ids": input_ids, "masked_positions": positions, "labels": labels}


def save_tokenizer(folder: Path) -> Path:
    """Save a word-level WordPiece tokenizer with BERT's special tokens and template."""
    names = [f"[{name.upper()}]" for name in SPECIAL]
    tokenizer = Tokenizer(WordPiece({token: i for i, token in enumerate(names + WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {f"{name}_token": f"[{name.upper()}]" for name in SPECIAL}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=24, **special).save_pretrained(folder)
    return folder
