"""Algorithms with missing gradients or two passes, on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Train
from tests.tiny_runs import losses, record, saved

STEPS = ["budget={wall: 100s, steps: 10}", "algorithms.batch_size_ramp=null", "checkpoint.interval=60s"]
LEFT_OUT = [
    "recipes=[crammed-bert,stochastic-depth,layer-freezing,swa]",
    "model.num_hidden_layers=4",
    "algorithms.stochastic_depth.drop_distribution=uniform",
]


@pytest.mark.slow
def test_two_ranks_skip_the_same_layers_and_equal_one_rank(train: Train, tmp_path: Path):
    for ranks, name in ((1, "one"), (2, "two")):
        result = train(*STEPS, *LEFT_OUT, "train.batch_size=64", f"run_name={name}", ranks=ranks)
        assert result.returncode == 0, result.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    one, two = (saved(tmp_path / name)["algorithms"]["SWA"]["average"] for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_two_ranks_take_the_steps_of_sam(train: Train, tmp_path: Path):
    result = train(*STEPS, "recipes=[crammed-bert,sam,lawa]", "run_name=r", ranks=2)
    assert result.returncode == 0, result.stderr
    found = losses(tmp_path / "r")
    assert record(tmp_path / "r")["steps"] == 10 and found[-1] < found[0]
