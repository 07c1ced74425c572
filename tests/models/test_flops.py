from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM

from cram_composer.models.flops import flops_per_token
from tests.models.tiny_models import tiny_model, training_batch


@pytest.mark.parametrize("length", [8, 16])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"stack": "recurrent", "repeats": 3},
        {"stack": "token-dropping", "num_hidden_layers": 6},
        {"stack": "funnel", "num_hidden_layers": 8},
        {"short_convolution": 3},
        {"ffn_every": 2, "ffn": "relu2", "value_embeddings": 1},
        {"head_transform": True, "norm_position": "post"},
    ],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items()), ["plain"]))),
)
def test_the_count_equals_torchs(changes, length):
    model, batch = tiny_model(**changes), training_batch(rows=2, length=length, masked=4)
    # eager attention, whose matrix products torch counts
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert flops_per_token(model, length, 4) == pytest.approx(counter.get_total_flops() / (2 * length))


def test_a_dense_head_counts_for_every_token():
    model = tiny_model()
    difference = flops_per_token(model, 16) - flops_per_token(model, 16, 4)
    assert difference == pytest.approx(6 * 16 * 40 * (1 - 4 / 16))


def test_the_head_of_a_model_of_transformers_counts_for_every_token():
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        attn_implementation="eager",
    )  # fmt: skip
    model, tokens = BertForMaskedLM(config), torch.arange(32).view(2, 16)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, labels=tokens).loss.backward()
    assert flops_per_token(model, 16, 4) == pytest.approx(counter.get_total_flops() / 32)
