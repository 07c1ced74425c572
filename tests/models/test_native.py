"""Export of a CramBERT as a class of transformers: equal logits, and no code in the folder."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForMaskedLM,
    ModernBertForMaskedLM,
)

from cram_composer.models.export import export_model, exported_form, verify_export
from cram_composer.models.native import to_native
from tests.models.tiny_models import VOCAB_SIZE, save_tokenizer, tiny_model

BERT = {
    "norm_position": "post",
    "ffn": "gelu",
    "positions": "learned",
    "attention_bias": True,
    "mlp_bias": True,
    "head_transform": True,
    "head_bias": True,
}
MODERN_BERT = {
    "norm_bias": False,
    "norm_eps": 1e-5,
    "first_norm": False,
    "positions": "rotary",
    "rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "local_window": 6,
    "head_transform": True,
    "head_bias": True,
}


def model(**changes):
    made = tiny_model(vocab_size=VOCAB_SIZE, num_hidden_layers=4, **changes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (BERT, BertForMaskedLM),
        ({**BERT, "tie_word_embeddings": False}, BertForMaskedLM),
        (MODERN_BERT, ModernBertForMaskedLM),
        ({**MODERN_BERT, "local_window": None}, ModernBertForMaskedLM),
        ({**MODERN_BERT, "norm_bias": True, "mlp_bias": True, "attention_bias": True}, ModernBertForMaskedLM),
        ({**MODERN_BERT, "head_bias": False}, ModernBertForMaskedLM),
    ],
)
def test_the_native_class_is_equal(changes, expected, tmp_path):
    ours = model(**changes)
    form = exported_form(ours)
    assert type(form) is expected
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    folder = export_model(form, tokenizer, tmp_path / "export", "")
    assert verify_export(folder, ours) <= 1e-5
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert type(AutoModelForMaskedLM.from_pretrained(folder)) is expected
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.model_type == form.config.model_type


def test_fine_tuning_drops_no_tokens():
    form = exported_form(model(stack="token-dropping"))
    assert form.config.stack == "plain"
    assert type(exported_form(model(**MODERN_BERT, stack="token-dropping"))) is ModernBertForMaskedLM


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**BERT, "norm_position": "pre"},
        {**BERT, "head_bias": False},
        {**BERT, "logit_softcap": 30.0},
        {**MODERN_BERT, "stack": "input-skip"},
        {**MODERN_BERT, "first_norm": True},
        {**MODERN_BERT, "qk_norm": True},
        {**MODERN_BERT, "ffn": "swiglu"},
    ],
)
def test_no_native_class_if_anything_differs(changes):
    assert to_native(model(**changes)) is None
