"""Validation of `scaleout`: contradictions give one line before torch is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.deepspeed import engine_config
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError
from tests.conftest import REPOSITORY

DEEPSPEED = "scaleout.strategy=deepspeed"


def config(*overrides: str, yaml: str = "cram-cpu.yaml") -> RunConfig:
    return compose(RunConfig, REPOSITORY / "yamls" / yaml, list(overrides)).config


def refusal(*overrides: str, world_size: int = 2) -> str:
    with pytest.raises(ConfigError) as caught:
        check_run(config(*overrides), world_size)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("strategy", ["auto", "ddp", "fsdp2", "deepspeed"])
def test_the_short_form_names_a_strategy_and_keeps_its_settings(strategy: str):
    found = config("scaleout.fsdp2.reshard_after_forward=false", f"scaleout={strategy}")
    assert found.scaleout.strategy == strategy
    assert found.scaleout.fsdp2.reshard_after_forward is False
    check_run(found, world_size=2)


@pytest.mark.parametrize(
    ("setting", "both"),
    [
        ("train_batch_size=64", ("64", "32 (train.batch_size)")),
        ("train_micro_batch_size_per_gpu=8", ("8", "16 (train.device_train_microbatch_size)")),
        ("gradient_accumulation_steps=4", ("4", "1 (train.batch_size /")),
        ("gradient_clipping=1.0", ("1.0", "0.5 (algorithms.gradient_clipping")),
        ("managed_gradient_accumulation=true", ("True", "False")),
    ],
)
def test_what_disagrees_is_named_with_both_values(setting: str, both: tuple[str, str]):
    message = refusal(DEEPSPEED, f"scaleout.deepspeed.{setting}")
    assert message.startswith(f"scaleout.deepspeed.{setting.split('=')[0]}: ")
    assert all(value in message for value in both)


def test_what_agrees_is_taken():
    agreeing = {
        "train_batch_size": 32,
        "train_micro_batch_size_per_gpu": 16,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.5,
        "fp16": "{enabled: false}",
    }
    found = config(DEEPSPEED, *(f"scaleout.deepspeed.{key}={value}" for key, value in agreeing.items()))
    check_run(found, world_size=2)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer={type: Adam}", "the optimizer is set by `optimizer` of the run"),
        ("fp16={enabled: true}", "train.precision"),
        ("bf16={enabled: true}", "train.precision=bf16"),
        ("zero_optimization=2", "must be a mapping"),
        ("zero_optimization.stage=0", "scaleout=ddp"),
        ("zero_optimization={stage: 1, overlap_comm: true}", "has no effect with stage 1"),
        ("zero_optimization={stage: 3, offload_param: {device: cpu}}", "averages read the weights"),
        ("zero_optimization={stage: 2, offload_optimizer: {device: nvme}}", "must be cpu or none, got nvme"),
    ],
)
def test_what_a_run_cannot_do_is_refused_with_the_reason(setting: str, said: str):
    assert said in refusal(DEEPSPEED, f"scaleout.deepspeed.{setting}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            [DEEPSPEED, "recipes=[crammed-bert,muon]"],
            "deepspeed does not support optimizer.name=muon: it needs whole matrices",
        ),
        ([DEEPSPEED, "recipes=[crammed-bert,gradient-clipping-value]"], "use clipping_type=norm"),
        ([DEEPSPEED, "recipes=[crammed-bert,sam]"], "algorithms.sam"),
        (["scaleout=fsdp2", "recipes=[crammed-bert,sam]"], "fsdp2 does not support algorithms.sam"),
        (["scaleout=fsdp2", "train.precision=fp16", "device=cuda"], "train.precision=bf16 or fp32"),
    ],
)
def test_recipes_that_a_strategy_cannot_do(settings: list[str], said: str):
    assert said in refusal(*settings)


def test_the_users_settings_are_passed_on_and_the_runs_are_above_them():
    given = ["reduce_bucket_size: 1000", "offload_optimizer: {device: cpu}"]
    found = config(
        DEEPSPEED,
        f"scaleout.deepspeed.zero_optimization={{{', '.join(given)}}}",
        "scaleout.deepspeed.steps_per_print=7",
    )
    engine = engine_config(found, world_size=2)
    assert engine["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 1000,
        "offload_optimizer": {"device": "cpu"},
    }
    assert (engine["steps_per_print"], engine["gradient_clipping"], engine["train_batch_size"]) == (7, 0.5, 32)
    without = config(DEEPSPEED, "algorithms.gradient_clipping=null")
    assert engine_config(without, world_size=2)["gradient_clipping"] == 0.0


@pytest.mark.parametrize("name", ["cram-8gpu.yaml", "cram-8gpu-fsdp2.yaml", "cram-8gpu-deepspeed.yaml"])
def test_the_runs_for_eight_gpus_are_the_cram_on_one_in_another_shape(name: str):
    eight = config(yaml=name)
    # ZeRO does not support Muon.
    without_muon = ["recipes=[crammed-bert,no-first-norm,bf16-residual,rope]"] if "deepspeed" in name else []
    one = config(*without_muon, yaml="cram-1gpu.yaml")
    check_run(eight, world_size=8)
    assert eight.budget.device_hours == 24.0 and one.budget.wall == "24h"
    eight.budget, eight.scaleout = one.budget, one.scaleout
    assert eight == one


def test_a_refusal_comes_before_torch():
    code = (
        "import sys; from cram_composer.cli import main; status = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "train", "yamls/cram-cpu.yaml", DEEPSPEED, "recipes=[crammed-bert,muon]"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (
        result.returncode == 2
        and "error: scaleout.strategy: deepspeed does not support optimizer.name=muon: " in result.stderr
    )
