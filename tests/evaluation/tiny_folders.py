"""Small masked LMs with tokenizers of different kinds, as folders that transformers loads."""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from tests.models.tiny_models import tiny_model

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = [
    "The river flows into the sea, and the king was born there.",
    "A king who knows the rivers cannot be unkind; kindness flows.",
    "Nobody believed that the unbelievable river was flowing.",
]
PIECES = [
    "the",
    "river",
    "king",
    "sea",
    "flow",
    "##ing",
    "was",
    "kind",
    "##ness",
    "un",
    "##able",
    "and",
    "no",
    "##body",
]
PIECES += ["who", "that", "into", "there", "can", "##not"]
MERGES = ["Ġ t", "Ġt h", "Ġth e", "i n", "Ġ k", "Ġk in", "o w", "f l", "Ġ fl", "n e", "s s", "ne ss"]
_LIMIT = 64


def wordpiece(lowercase: bool = True) -> Tokenizer:
    """Return 80 entries (83 with capitals): a few words, and letters; characters that are not in TEXT are [UNK]."""
    letters = string.ascii_lowercase + ("" if lowercase else "ANT")
    vocab = [*SPECIAL, *",.;", *letters, *(f"##{letter}" for letter in string.ascii_lowercase), *PIECES]
    model = models.WordPiece({token: number for number, token in enumerate(vocab)}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_ends(tokenizer)


def byte_level() -> Tokenizer:
    """Return a byte-level BPE: it knows every text, and a piece includes the space before its word."""
    merges = [tuple(merge.split()) for merge in MERGES]
    vocab = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(vocab)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_ends(tokenizer)


def _with_ends(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer, **changes) -> PreTrainedTokenizerFast:
    roles = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{"model_max_length": _LIMIT, **roles, **changes})


def masked_lm(kind: str, vocab_size: int) -> PreTrainedModel:
    """Return a masked LM of two layers whose weights are large enough for distinct predictions."""
    sizes = {"vocab_size": vocab_size, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    ends = {"intermediate_size": 64, "max_position_embeddings": _LIMIT + 8, "initializer_range": 0.3, "pad_token_id": 0}
    torch.manual_seed(11)
    if kind == "distilbert":
        return DistilBertForMaskedLM(
            DistilBertConfig(vocab_size=vocab_size, dim=32, n_layers=2, n_heads=2, hidden_dim=64, initializer_range=0.3)
        )
    if kind == "modernbert":
        special = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
        return ModernBertForMaskedLM(ModernBertConfig(**sizes, **ends, **special, reference_compile=False))
    if kind.startswith("crambert"):
        changes = {"shift": True, "logit_softcap": 5.0} if kind == "crambert-shift" else {}
        return tiny_model(**sizes, **ends, **changes)
    models = {"bert": (BertConfig, BertForMaskedLM), "roberta": (RobertaConfig, RobertaForMaskedLM)}
    config, model = models[kind]
    return model(config(**sizes, **ends))


def save(folder: Path, kind: str = "bert", tokenizer: Tokenizer | None = None, **changes) -> Path:
    """Save a model with a tokenizer; `changes` are settings of the tokenizer."""
    made = wrapped(tokenizer or wordpiece(), **changes)
    masked_lm(kind, len(made)).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder
