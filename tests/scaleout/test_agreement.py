"""All strategies give equal losses, tokens, weights and checkpoints, and resume on other numbers of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cram_composer.runs.folder import ROW_LOSSES
from tests.scaleout.conftest import COMPARED
from tests.scaleout.ranks import STEPS, STRATEGIES, Ranks
from tests.scaleout.table import agreement
from tests.tiny_runs import losses, record, saved


@pytest.mark.parametrize(
    ("strategy", "resumed_on"),
    [("ddp", ()), ("fsdp2", (1,)), ("zero-1", ()), ("zero-2", ()), ("zero-3", (1,))]
    + [pytest.param(name, (1, 2, 4), marks=pytest.mark.slow) for name in STRATEGIES],
)
def test_two_ranks_equal_one_rank(strategy: str, resumed_on: tuple[int, ...], ranks: Ranks, one_rank: Path):
    name = f"{strategy}-{len(resumed_on)}"
    run = ranks(name, 2, *STRATEGIES[strategy], *COMPARED)
    assert losses(run) == pytest.approx(losses(one_rank), rel=1e-4)
    found, expected = record(run), record(one_rank)
    assert found["metrics"]["validation_loss"] == pytest.approx(expected["metrics"]["validation_loss"], rel=1e-4)
    for key in ("steps", "tokens", "parameters", "flops_per_token", "epochs"):
        assert found[key] == expected[key]
    assert np.load(run / ROW_LOSSES) == pytest.approx(np.load(one_rank / ROW_LOSSES), rel=1e-3)
    assert found["world_size"] == 2
    assert strategy in found["kernels"]["scaleout"].lower()
    for step in (2, STEPS):
        same_checkpoint(saved(run, step), saved(one_rank, step))
    for count in resumed_on:
        moved = ranks.resume(run, 3, f"{name}-on-{count}", count, *STRATEGIES[strategy], *COMPARED)
        assert losses(moved) == pytest.approx(losses(run), rel=1e-5)
        assert record(moved)["tokens"] == found["tokens"]
        same_checkpoint(saved(moved, STEPS), saved(run, STEPS))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_gradients_are_the_mean_over_ranks(strategy: str, ranks: Ranks):
    """Adam is invariant to the scale of gradients, so clipping reveals the scale."""
    clipped = "algorithms.gradient_clipping={clipping_type: value, clipping_threshold: 0.01}"
    one = ranks.alone("mean-one", clipped)
    two = ranks(f"mean-two-{strategy}", 2, *STRATEGIES[strategy], clipped)
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero-2"])
def test_labels_weigh_equally_and_the_ramp_counts_all_rows(strategy: str, ranks: Ranks):
    """One rank trains whole batches; two ranks train microbatches with different numbers of labels, or none."""
    settings = [
        "objective={positions: bernoulli, mlm_probability: 0.05}",
        "algorithms.batch_size_ramp={initial_batch_size: 10, until: 0.6}",
    ]
    one = ranks.alone("labels-one", *settings, "train.device_train_microbatch_size=32")
    two = ranks(f"labels-two-{strategy}", 2, *STRATEGIES[strategy], *settings, "train.device_train_microbatch_size=2")
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert record(two)["tokens"] == record(one)["tokens"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero-2", "zero-3"])
def test_replaced_token_detection_is_the_same_on_two_ranks(strategy: str, ranks: Ranks):
    """Every rank samples the replacements of its own rows."""
    settings = [
        "recipes=[crammed-bert,rope,rtd]",
        "objective={generator_width: 0.5, embeddings: gdes}",
        "eval.interval=0.3",
    ]
    one = ranks.alone("rtd-one", *settings)
    two = ranks(f"rtd-two-{strategy}", 2, *STRATEGIES[strategy], *settings)
    assert losses(two) == pytest.approx(losses(one), rel=1e-4)
    found, expected = record(two)["metrics"], record(one)["metrics"]
    assert found["validation_loss"] == pytest.approx(expected["validation_loss"], rel=1e-4)
    assert found["detection"] == pytest.approx(expected["detection"], abs=1e-3)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero-2", "zero-3"])
def test_adaptive_masks_follow_the_predictions_of_all_ranks(strategy: str, ranks: Ranks):
    settings = ["recipes=[crammed-bert,rope,adaptive-masking]", "objective.adapt_every=2"]
    one = ranks.alone("adaptive-one", *settings)
    two = ranks(f"adaptive-two-{strategy}", 2, *STRATEGIES[strategy], *settings)
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    expected, found = (saved(run, STEPS)["algorithms"]["AdaptiveMasking"] for run in (one, two))
    assert found["counts"].sum() == expected["counts"].sum() > 0 and found["updated"] == expected["updated"] == 4
    torch.testing.assert_close(found["weights"], expected["weights"], rtol=0.05, atol=0.01)


def same_checkpoint(ours: dict, theirs: dict) -> None:
    """Check that weights, moments, parameter groups and the average are equal whole tensors."""
    close(ours["model"], theirs["model"])
    assert list(ours["optimizers"]) == list(theirs["optimizers"]) == ["AdamW"]
    mine, other = ours["optimizers"]["AdamW"], theirs["optimizers"]["AdamW"]
    assert [group["params"] for group in mine["param_groups"]] == [group["params"] for group in other["param_groups"]]
    assert mine["state"].keys() == other["state"].keys()
    for name in other["state"]:
        close(mine["state"][name], other["state"][name])
    close(ours["algorithms"]["EMA"]["average"], theirs["algorithms"]["EMA"]["average"])


def close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "strategy", ["zero-2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "fsdp2", "zero-3"))]
)
def test_ranks_stop_at_the_same_step_though_one_is_slow(strategy: str, ranks: Ranks):
    run = ranks(f"slowed-{strategy}", 2, *STRATEGIES[strategy], "budget={wall: 2s, steps: null}", slowed=0.02)
    found = record(run)
    assert found["status"] == "finished" and found["steps"] > 2
    assert ranks.forwards == [found["steps"] * 4] * 2  # microbatches
    assert found["steps"] < 2.0 / 0.08 + 2  # each step sleeps 4 x 0.02 s


@pytest.mark.parametrize(
    ("strategy", "policy"),
    [("zero-2", "skip-step")]
    + [
        pytest.param(s, p, marks=pytest.mark.slow)
        for s in ("fsdp2", "zero-1", "zero-3")
        for p in ("skip-step", "rollback")
    ],
)
def test_a_loss_that_is_not_finite_on_one_rank_is_not_applied_on_any(strategy: str, policy: str, ranks: Ranks):
    settings = [*COMPARED, f"train.on_nonfinite={policy}"]
    runs = [
        ranks(f"{policy}-{name}-{strategy}", 2, *STRATEGIES[name], *settings, bad=14)  # in step 3 of four microbatches
        for name in ("ddp", strategy)
    ]
    assert [record(run)["steps_skipped"] for run in runs] == [1, 1]
    assert losses(runs[0])[3] is losses(runs[1])[3] is None
    same_checkpoint(*(saved(run, STEPS) for run in runs))


@pytest.mark.parametrize("strategy", ["zero-2", pytest.param("zero-3", marks=pytest.mark.slow)])
def test_optimizer_offload_to_host_memory(strategy: str, ranks: Ranks, one_rank: Path):
    offload = "scaleout.deepspeed.zero_optimization.offload_optimizer={device: cpu}"
    run = ranks(f"offload-{strategy}", 2, *STRATEGIES[strategy], offload, *COMPARED)
    assert losses(run) == pytest.approx(losses(one_rank), rel=1e-4)
    same_checkpoint(saved(run, STEPS), saved(one_rank, STEPS))


@pytest.mark.parametrize(
    "strategy", ["zero-3", *(pytest.param(s, marks=pytest.mark.slow) for s in ("fsdp2", "zero-1"))]
)
def test_the_export_is_the_whole_average(strategy: str, ranks: Ranks):
    from transformers import AutoModelForMaskedLM

    export = ["export.enabled=true", "export.sentences=[]", "recipes=[crammed-bert,ema]"]
    run = ranks(f"export-{strategy}", 2, *STRATEGIES[strategy], *export)
    model = AutoModelForMaskedLM.from_pretrained(run / "export", trust_remote_code=True)
    average = saved(run, STEPS)["algorithms"]["EMA"]["average"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, average[f"model.{name}"])


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_fifty_steps_agree(count: int, ranks: Ranks):
    for name, difference in agreement(ranks, [count])[count].items():
        assert difference < 1e-4, name
