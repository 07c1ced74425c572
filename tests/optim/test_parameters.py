"""Role and depth of each parameter in CramBERT and in models of transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM

from cram_composer.optim.parameters import ModelParameter, describe_parameters, hidden_size
from tests.optim.small import SIZES, small_model

LAYER = "model.encoder.layers.1."


def described(model: nn.Module) -> dict[str, ModelParameter]:
    return {parameter.name: parameter for parameter in describe_parameters(model)}


def hugging_face(name: str, **changes) -> nn.Module:
    sizes = {**SIZES, "vocab_size": 40, "max_position_embeddings": 24, **changes}
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model(name, **sizes))


def test_every_trainable_parameter_once():
    model = small_model()
    model.model.encoder.final_norm.weight.requires_grad_(False)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert [parameter.name for parameter in describe_parameters(model)] == names
    assert "model.encoder.final_norm.weight" not in names


def test_roles_and_depths_of_crambert():
    parameters = described(small_model(attention_bias=True, positions="learned"))
    assert [parameters[LAYER + "attention.qkv." + part].role for part in ("weight", "bias")] == ["matrix", "other"]
    assert parameters["model.encoder.embeddings.word_embeddings.weight"].role == "embedding"
    assert parameters["model.encoder.embeddings.positions.embedding.weight"].role == "embedding"
    assert parameters["model.encoder.embeddings.norm.weight"].depth == 0
    assert parameters[LAYER + "attention_norm.weight"].depth == 2
    assert parameters["model.encoder.final_norm.weight"].depth == 3
    assert parameters[LAYER + "feedforward.w_out.weight"].in_layer
    assert not parameters["model.encoder.final_norm.weight"].in_layer


def test_projections_of_fused_matrices():
    parameters = described(small_model())
    parts = {name.removeprefix(LAYER): p.parts for name, p in parameters.items() if name.startswith(LAYER)}
    assert {name: count for name, count in parts.items() if count > 1} == {
        "attention.qkv.weight": 3,
        "feedforward.w_in.weight": 2,
    }
    assert described(small_model(ffn="gelu"))[LAYER + "feedforward.w_in.weight"].parts == 1


def test_lists_of_embeddings_are_not_layers():
    parameters = described(small_model(value_embeddings=1))
    values = [parameter for name, parameter in parameters.items() if "value_embeddings" in name]
    assert [(value.role, value.depth, value.in_layer) for value in values] == [("embedding", 0, False)]
    assert parameters[LAYER + "attention.out.weight"].depth == 2


def test_an_untied_decoder_is_an_output_and_a_tied_one_an_embedding():
    tied, untied = described(small_model()), described(small_model(tie_word_embeddings=False))
    assert "model.head.decoder.weight" not in tied
    assert untied["model.head.decoder.weight"].role == "output"
    assert untied["model.head.decoder.weight"].depth == 3


@pytest.mark.parametrize(
    ("name", "layer", "fused", "head"),
    [
        ("bert", "bert.encoder.layer.1.", {}, "cls.predictions.transform.dense.weight"),
        ("modernbert", "model.layers.1.", {"attn.Wqkv.weight": 3, "mlp.Wi.weight": 2}, "head.dense.weight"),
        ("distilbert", "distilbert.transformer.layer.1.", {}, "vocab_transform.weight"),
        ("roberta", "roberta.encoder.layer.1.", {}, "lm_head.dense.weight"),
        ("deberta", "deberta.encoder.layer.1.", {}, "cls.predictions.transform.dense.weight"),
        ("xlm", "transformer.ffns.1.", {}, "pred_layer.proj.bias"),
    ],
)
def test_models_of_transformers(name: str, layer: str, fused: dict[str, int], head: str):
    own = {"deberta": {"pad_token_id": 0, "relative_attention": True, "pos_att_type": ["p2c"]}}
    sizes = {"pad_token_id": 0, "intermediate_size": 32} if name == "modernbert" else own.get(name, {})
    if name == "distilbert":
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    if name == "xlm":
        sizes = {"emb_dim": 16, "n_layers": 2, "n_heads": 2, "pad_index": 0}
    model = hugging_face(name, **sizes)
    parameters = described(model)
    in_layer = {key: p for key, p in parameters.items() if key.startswith(layer)}
    assert in_layer and {p.depth for p in in_layer.values()} == {2}
    assert {key.removeprefix(layer): p.parts for key, p in in_layer.items() if p.parts > 1} == fused
    assert {p.role for p in in_layer.values() if p.parameter.ndim == 2} == {"matrix"}
    embeddings = [p for p in parameters.values() if p.role == "embedding"]
    assert embeddings and {p.depth for p in embeddings} == {0}
    assert parameters[head].depth == 3
    assert hidden_size(model) == 16


def test_models_without_layers():
    (weight, bias) = describe_parameters(nn.Linear(2, 3))
    assert (weight.role, weight.depth, bias.role) == ("matrix", 1, "other")
    assert hidden_size(nn.Linear(2, 3)) is None


def test_unknown_fused_matrices_stay_whole():
    class GroupedQueries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(16, 32, bias=False)  # 16 rows of queries, 8 of keys, 8 of values

    assert [parameter.parts for parameter in describe_parameters(nn.ModuleList([GroupedQueries()]))] == [1]
    assert torch.is_tensor(describe_parameters(GroupedQueries())[0].parameter)
