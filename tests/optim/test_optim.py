from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cram_composer.config.model_schema import ModelConfig
from cram_composer.config.optimizer_schema import OptimizerConfig
from cram_composer.errors import CramError
from cram_composer.models.factory import build_model
from cram_composer.optim import build_optimizer, parameter_groups

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = {"pad": 0, "cls": 2, "sep": 3}


def decayed_names(model: nn.Module) -> set[str]:
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    grouped = [id(parameter) for parameter in (*decayed["params"], *plain["params"])]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters()), "each parameter once"
    ids = {id(parameter) for parameter in decayed["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def test_matrices_are_decayed_and_nothing_else():
    model = build_model(ModelConfig(**SIZES, attention_bias=True, mlp_bias=True), 40, SPECIAL)
    matrices = ["attention.qkv", "attention.out", "feedforward.w_in", "feedforward.w_out"]
    layers = {f"encoder.layers.{i}.{matrix}.weight" for i in range(2) for matrix in matrices}
    assert decayed_names(model) == layers | {"encoder.embeddings.word_embeddings.weight"}


def test_norms_of_other_architectures_are_not_decayed():
    settings = ModelConfig(architecture="hf", hf_name="bert", hf_overrides={**SIZES, "num_hidden_layers": 1})
    names = decayed_names(build_model(settings, 40, SPECIAL))
    assert "bert.encoder.layer.0.attention.self.query.weight" in names
    assert not [name for name in names if "LayerNorm" in name or name.endswith("bias")]


def test_frozen_parameters_are_left_out():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.01)
    assert not decayed["params"]
    assert plain["params"] == [model.bias]


def test_adamw_takes_its_settings():
    settings = OptimizerConfig(lr=0.002, betas=[0.8, 0.95], eps=1e-9, weight_decay=0.05)
    optimizer = build_optimizer(settings, nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.AdamW)
    for group, decay in zip(optimizer.param_groups, (0.05, 0.0), strict=True):
        assert (group["lr"], group["betas"], group["eps"]) == (0.002, (0.8, 0.95), 1e-9)
        assert group["weight_decay"] == decay


def test_the_fused_kernel_is_adamw_of_the_paper():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    reference = copy.deepcopy(model)
    fused = build_optimizer(OptimizerConfig(lr=0.01), model)
    plain = torch.optim.AdamW(
        parameter_groups(reference, 0.01), lr=0.01, betas=(0.9, 0.98), eps=1e-12, foreach=False, fused=False
    )
    for _ in range(20):
        inputs = torch.randn(5, 8)
        for network, optimizer in ((model, fused), (reference, plain)):
            optimizer.zero_grad()
            network(inputs).square().mean().backward()
            optimizer.step()
    for ours, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_an_unknown_optimizer_names_the_nearest():
    with pytest.raises(CramError, match=r"optimizer\.name: there is no 'adam'; did you mean 'adamw'"):
        build_optimizer(OptimizerConfig(name="adam"), nn.Linear(2, 2))
