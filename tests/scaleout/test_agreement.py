"""All strategies train the same model: losses, tokens, weights and checkpoints; and go on from each other's ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.scaleout.ranks import STEPS, STRATEGIES, Ranks
from tests.scaleout.table import agreement
from tests.tiny_runs import losses, record, saved

FIRST = {name: STRATEGIES[name] for name in STRATEGIES if name != "ddp"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_ranks_train_what_one_does(strategy: str, one_rank: Path, two_ranks: dict[str, Path]):
    run = two_ranks[strategy]
    assert losses(run) == pytest.approx(losses(one_rank), rel=1e-4)
    found, expected = record(run), record(one_rank)
    assert found["metrics"]["validation_loss"] == pytest.approx(expected["metrics"]["validation_loss"], rel=1e-4)
    for key in ("steps", "tokens", "parameters", "flops_per_token", "epochs"):
        assert found[key] == expected[key]
    assert found["world_size"] == 2
    assert strategy.split("-")[0] in found["kernels"]["scaleout"].lower()


@pytest.mark.parametrize("strategy", FIRST)
def test_a_checkpoint_is_complete_and_that_of_ddp(strategy: str, two_ranks: dict[str, Path]):
    ours, theirs = saved(two_ranks[strategy], STEPS), saved(two_ranks["ddp"], STEPS)
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
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("strategy", "after"),
    [
        ("fsdp2", 1),
        ("zero-3", 1),
        *(pytest.param(name, count, marks=pytest.mark.slow) for name in STRATEGIES for count in (1, 2, 4)),
    ],
)
def test_a_run_goes_on_with_another_number_of_ranks(
    strategy: str, after: int, ranks: Ranks, two_ranks: dict[str, Path]
):
    whole = two_ranks[strategy]
    shared = ["recipes=[crammed-bert,ema]", "checkpoint.interval=0.000001s", "eval.interval=0.3"]
    moved = ranks.resume(whole, 3, f"{strategy}-on-{after}", after, *STRATEGIES[strategy], *shared)
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-5)
    close(saved(moved, STEPS)["model"], saved(whole, STEPS)["model"])
    close(saved(moved, STEPS)["algorithms"]["EMA"]["average"], saved(whole, STEPS)["algorithms"]["EMA"]["average"])
    assert record(moved)["tokens"] == record(whole)["tokens"]


@pytest.mark.parametrize(
    "strategy", ["zero-2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddp", "fsdp2", "zero-3"))]
)
def test_ranks_stop_at_the_same_step_though_one_is_slow(strategy: str, ranks: Ranks):
    run = ranks(f"slowed-{strategy}", 2, *STRATEGIES[strategy], "budget={wall: 2s, steps: null}", slowed=0.02)
    found = record(run)
    assert found["status"] == "finished" and found["steps"] > 2
    assert ranks.forwards == [found["steps"] * 4] * 2  # microbatches
    # Four microbatches sleep for 0.02 s each.
    assert found["steps"] < 2.0 / 0.08 + 2


@pytest.mark.parametrize("strategy", ["zero-2", pytest.param("zero-3", marks=pytest.mark.slow)])
def test_the_optimizer_may_be_in_the_memory_of_the_host(strategy: str, ranks: Ranks, one_rank: Path):
    offload = "scaleout.deepspeed.zero_optimization.offload_optimizer={device: cpu}"
    run = ranks(f"offload-{strategy}", 2, *STRATEGIES[strategy], offload, "recipes=[crammed-bert,ema]")
    assert losses(run) == pytest.approx(losses(one_rank), rel=1e-4)


@pytest.mark.parametrize("strategy", ["zero-3", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_what_is_exported_is_the_whole_model(strategy: str, ranks: Ranks):
    from transformers import AutoModelForMaskedLM

    run = ranks(
        f"export-{strategy}",
        2,
        *STRATEGIES[strategy],
        "export.enabled=true",
        "export.sentences=[]",
        "recipes=[crammed-bert,ema]",
    )
    model = AutoModelForMaskedLM.from_pretrained(run / "export", trust_remote_code=True)
    average = saved(run, STEPS)["algorithms"]["EMA"]["average"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, average[f"model.{name}"])
    json.loads((run / "record.json").read_text())["metrics"]["fills"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_fifty_steps_agree(count: int, ranks: Ranks):
    for name, difference in agreement(ranks, [count])[count].items():
        assert difference < 1e-4, name
