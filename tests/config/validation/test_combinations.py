"""Choices that exclude each other and keys without effect give one line before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError
from tests.conftest import REPOSITORY

HF = "model={architecture: hf, hf_name: bert}"


def check(*overrides: str, path: Path = REPOSITORY / "yamls" / "cram-cpu.yaml") -> None:
    check_run(compose(RunConfig, path, list(overrides)).config, world_size=1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["algorithms={ema: {}, lawa: {}}"], "algorithms: ema and lawa exclude each other"),
        (
            ["algorithms={fused_layernorm: {}, low_precision_layernorm: {}}"],
            "algorithms: fused_layernorm and low_precision_layernorm exclude each other",
        ),
        (
            ["model.residual_in_fp32=false", "train.precision=fp32"],
            "model.residual_in_fp32: false needs train.precision=bf16 or auto",
        ),
        (
            ["recipes=[crammed-bert,schedule-free]", "algorithms.swa={}"],
            "algorithms.swa: optimizer schedule-free averages the weights itself",
        ),
        (
            ["model.mup_base_width=256", "optimizer.name=muon"],
            "model.mup_base_width: muP has no rule for optimizer muon",
        ),
        (["algorithms.layer_freezing={}", "model.stack=elc"], "algorithms.layer_freezing: with model.stack=elc"),
        (["algorithms.layer_freezing={}", "model.stack=recurrent"], "algorithms.layer_freezing: with model.stack="),
        (["algorithms.stochastic_depth={}", "model.norm_position=post"], "algorithms.stochastic_depth: requires"),
        (["algorithms.stochastic_depth={}", HF], "algorithms.stochastic_depth: requires layers"),
        (["algorithms.stochastic_depth={}", "train.compile=full"], "algorithms.stochastic_depth: train.compile=full"),
        (["algorithms.label_smoothing={}", HF], "algorithms.label_smoothing: models of transformers"),
        (
            ["recipes=[crammed-bert,short-convolution,token-dropping]"],
            "model.short_convolution: layers of model.stack=token-dropping see parts",
        ),
        (["model.stack=funnel", "model.num_hidden_layers=4"], "model.num_hidden_layers: must be >= 5 with stack=fun"),
        (
            ["recipes=[crammed-bert,token-dropping]", "model.attention_kernel=flex"],
            "model.attention_kernel: flex masks",
        ),
        (["model.attention_kernel=flash", "model.stack=token-dropping"], "model.attention_kernel: flash masks"),
        (["model={attention_kernel: flex, attention_probs_dropout_prob: 0.1}"], "model.attention_kernel: flex has no"),
        (
            ["model.attention_kernel=flash", "objective={shift: true, causal_fraction: 0.5}"],
            "model.attention_kernel: flash treats either all rows or none as causal",
        ),
        (["model={stack: token-dropping, num_hidden_layers: 2}"], "model.num_hidden_layers: must be >= 3 with stack="),
        (["algorithms.lawa={update_interval: 0.2}"], "algorithms.lawa.k: 6 snapshots every 0.2 of the budget"),
        (["eval.final_rows=32"], "eval.final_rows: must be at least one batch (eval.batch_size x devices = 64)"),
    ],
)
def test_what_cannot_be_combined_is_one_line(overrides: list[str], message: str):
    with pytest.raises(ConfigError) as refused:
        check(*overrides)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_half_of_what_cannot_be_combined_is_taken():
    for overrides in (
        ["algorithms.stochastic_depth={}"],
        ["algorithms={ema: {}, fused_layernorm: {}}"],
        [HF],
        ["algorithms.lawa={k: 5, update_interval: 0.2}"],
        ["eval.final_rows=64"],
    ):
        check(*overrides)


@pytest.mark.parametrize("order", ["sandwich-norm,no-first-norm", "no-first-norm,sandwich-norm"])
def test_the_order_of_recipes_does_not_decide_whether_a_key_has_an_effect(order: str):
    path = REPOSITORY / "yamls" / "cram-cpu.yaml"
    model = compose(RunConfig, path, [f"recipes=[crammed-bert,{order}]"]).config.model
    assert model.norm_position == "sandwich" and not model.first_norm


@pytest.mark.parametrize("recipe", ["deep-narrow", "adaptive-masking", "random-mask-rate"])
def test_recipes_that_apply_to_models_of_transformers_are_taken(recipe: str):
    check(f"recipes=[crammed-bert,{recipe}]", HF)


@pytest.mark.parametrize("preset", ["modern-bert", "mosaic-bert", "gpt-bert"])
def test_random_mask_rates_mix_with_every_preset(preset: str):
    path = REPOSITORY / "yamls" / "cram-cpu.yaml"
    objective = compose(RunConfig, path, [f"recipes=[{preset},random-mask-rate]"]).config.objective
    assert (objective.min_mlm_probability, objective.rates) == (0.0, (0.8, 0.8))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.repeats=2"], "model.repeats: has no effect with model.stack=plain; set model.stack=recurrent"),
        (["model={positions: none, rope_theta: 5e4}"], "model.rope_theta: has no effect with model.positions=none"),
        (["model.global_every=2"], "model.global_every: has no effect with model.local_window=null"),
        (["model={norm: rmsnorm, norm_bias: false}"], "model.norm_bias: has no effect with model.norm=rmsnorm"),
        (["model={norm_position: post, final_norm: false}"], "model.final_norm: has no effect with model.norm_pos"),
        (["model.hf_overrides.type_vocab_size=1"], "model.hf_overrides: has no effect with model.architecture="),
        ([HF, "model.loss_kernel=chunked"], "model.loss_kernel: has no effect with model.architecture=hf"),
    ],
)
def test_a_key_that_nothing_reads_is_one_line(overrides: list[str], message: str):
    with pytest.raises(ConfigError) as refused:
        check(*overrides)
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
    assert str(refused.value).endswith(" (set on the command line)")


def test_what_an_earlier_layer_set_for_another_choice_is_let_be(tmp_path: Path):
    check("recipes=[modern-bert,alibi]")  # modern-bert sets the bases of rotary positions
    run = tmp_path / "run.yaml"
    run.write_text("data: {local: /somewhere}\nbudget: 1h\nmodel: {positions: rotary, rope_theta: 20000.0}\n")
    check("model.positions=none", path=run)
    run.write_text("data: {local: /somewhere}\nbudget: 1h\nmodel: {positions: none, rope_theta: 20000.0}\n")
    with pytest.raises(ConfigError, match=rf"model\.rope_theta: has no effect .*set in {run}"):
        check(path=run)
    check("model.positions=rotary", path=run)
