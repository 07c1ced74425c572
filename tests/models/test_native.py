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

from cram_composer.errors import CramError
from cram_composer.models.export import export_model, exported_form, verify_export
from cram_composer.models.native import from_native, to_native
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


CRAMMED = {"positions": "rotary"}  # with a norm before the first attention, and without a transform in the head


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
        (CRAMMED, ModernBertForMaskedLM),
        ({**CRAMMED, "first_norm": False}, ModernBertForMaskedLM),
        ({**CRAMMED, "norm_bias": False, "tie_word_embeddings": False}, ModernBertForMaskedLM),
        ({**CRAMMED, "mlp_bias": True, "attention_bias": True, "head_transform": True}, ModernBertForMaskedLM),
        ({**CRAMMED, "first_norm": False, "local_window": 6}, ModernBertForMaskedLM),
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


@pytest.mark.parametrize("first_norm", [True, False])
def test_the_encoder_of_a_native_class_is_equal_unless_a_weight_of_the_final_norm_is_nearly_zero(first_norm):
    ours = model(**CRAMMED, first_norm=first_norm)
    ids = torch.randint(VOCAB_SIZE, (2, 9))
    for weight in (None, 1e-9, 0.0):
        with torch.no_grad():
            if weight is not None:
                ours.encoder.final_norm.weight[3] = weight
            native = to_native(ours)
            hidden = [ours.encoder(ids).last_hidden_state, native.model(ids).last_hidden_state]
            logits = [ours(ids).logits, native(ids).logits]
        assert torch.allclose(*logits, atol=2e-5)
        assert torch.allclose(*hidden, atol=2e-5) == (weight is None)
        restored = model(**CRAMMED, first_norm=first_norm)
        restored.load_state_dict(from_native(native, restored, "native"))
        assert torch.equal(restored(ids).logits, logits[0])


def test_a_layer_in_front_stays_without_effect_in_fine_tuning():
    native = to_native(model(**CRAMMED)).train()
    optimizer = torch.optim.AdamW(native.parameters(), lr=1e-2)
    ids = torch.randint(VOCAB_SIZE, (4, 9))
    for _ in range(3):
        optimizer.zero_grad()
        native(ids, labels=ids).loss.backward()
        optimizer.step()
    layer = native.model.layers[0]
    hidden = torch.randn(2, 9, native.config.hidden_size)
    assert torch.count_nonzero(layer.attn.Wo.weight) == torch.count_nonzero(layer.mlp.Wo.weight) == 0
    assert torch.equal(layer.mlp(hidden), torch.zeros_like(hidden))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_norm": True}, "set model.first_norm=false"),
        ({"head_transform": True}, "equals with model.head_transform=false"),
        ({"qk_norm": True}, "equals with model.qk_norm=false"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_the_setting(changes, message):
    native = to_native(model(**CRAMMED, first_norm=False))
    with pytest.raises(CramError, match=message):
        from_native(native, model(**{**CRAMMED, "first_norm": False, **changes}), "native")


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
