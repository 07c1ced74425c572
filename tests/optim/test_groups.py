"""Parameter groups: weight decay and learning rates."""

from __future__ import annotations

import pytest
from torch import nn

from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.schema.optimizer import GroupsConfig
from cram_composer.models.factory import build_model
from cram_composer.optim import parameter_groups
from tests.optim.small import SIZES, SPECIAL, small_model

MATRICES = ["attention.qkv", "attention.out", "feedforward.w_in", "feedforward.w_out"]
EMBEDDING = "model.encoder.embeddings.word_embeddings.weight"


def by_name(model: nn.Module, **settings) -> dict[str, dict[str, float]]:
    """Return the options of each parameter's group; check that each parameter is in exactly one."""
    groups = parameter_groups(model, 0.1, 0.01, **settings)
    options = {id(p): {k: v for k, v in group.items() if k != "params"} for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(options) == len(list(model.parameters()))
    assert all(group["params"] for group in groups), "torch cannot load the state of two empty groups"
    return {name: options[id(p)] for name, p in model.named_parameters()}


def decayed(options: dict[str, dict[str, float]]) -> set[str]:
    assert {group["weight_decay"] for group in options.values()} <= {0.0, 0.01}
    return {name for name, group in options.items() if group["weight_decay"]}


def test_matrices_are_decayed_and_nothing_else():
    options = by_name(small_model(attention_bias=True, mlp_bias=True))
    layers = {f"model.encoder.layers.{i}.{matrix}.weight" for i in range(2) for matrix in MATRICES}
    assert decayed(options) == layers | {EMBEDDING}
    assert {group["lr"] for group in options.values()} == {0.1}


def test_norms_of_other_architectures_are_not_decayed():
    settings = ModelConfig(architecture="hf", hf_name="bert", hf_overrides={**SIZES, "num_hidden_layers": 1})
    names = decayed(by_name(build_model(settings, 40, SPECIAL)))
    assert "bert.encoder.layer.0.attention.self.query.weight" in names
    assert not [name for name in names if "LayerNorm" in name or name.endswith("bias")]


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    (group,) = parameter_groups(model, 0.1, 0.01)
    assert group["params"] == [model.bias] and group["weight_decay"] == 0.0


def test_embeddings_without_decay_and_with_their_own_rate():
    plain = by_name(small_model())
    changed = by_name(small_model(), config=GroupsConfig(decay_embeddings=False, embedding_lr=0.5))
    assert {name for name in plain if plain[name] != changed[name]} == {EMBEDDING}
    assert changed[EMBEDDING] == {"lr": 0.05, "weight_decay": 0.0}


def test_layer_lr_decay():
    rates = {
        name: group["lr"] for name, group in by_name(small_model(), config=GroupsConfig(layer_lr_decay=0.5)).items()
    }
    assert rates["model.encoder.final_norm.weight"] == 0.1
    assert rates["model.encoder.layers.1.attention.out.weight"] == pytest.approx(0.05)
    assert rates["model.encoder.layers.0.attention_norm.bias"] == pytest.approx(0.025)
    assert rates[EMBEDDING] == pytest.approx(0.0125)


def test_mup_keeps_rate_times_decay_of_matrices():
    """Table 8 of arXiv 2203.03466 for Adam: 1 / fan_in for hidden weights, 1 for all other parameters."""
    model = small_model(tie_word_embeddings=False, head_transform=True)
    plain, changed = by_name(model), by_name(model, mup_base_width=4)
    matrices = {name for name in plain if plain[name] != changed[name]}
    layers = {f"model.encoder.layers.{i}.{matrix}.weight" for i in range(2) for matrix in MATRICES}
    assert matrices == layers | {"model.head.transform.dense.weight"}
    assert all(changed[name] == pytest.approx({"lr": 0.025, "weight_decay": 0.04}) for name in matrices)
    assert by_name(model, mup_base_width=16) == plain


def test_the_group_at_the_plain_rate_is_last():
    """The budget callback and the trace report the rate of the last group."""
    for config in (GroupsConfig(embedding_lr=2.0), GroupsConfig(layer_lr_decay=0.5)):
        assert parameter_groups(small_model(), 0.1, 0.01, config)[-1]["lr"] == 0.1
