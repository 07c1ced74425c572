"""Microbatches do not change what is learnt: neither the batch ramp nor the weights of labels depend on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_runs import TinyRuns, losses

STEPS = ["budget={steps: 20}", "checkpoint={interval: 10m}"]
FEW_LABELS = ["objective.positions=bernoulli", "objective.mlm_probability=0.05"]  # most rows of 16 tokens have none


@pytest.fixture(scope="module")
def whole_batches(tiny_run: TinyRuns) -> Path:
    """Train with whole batches, whose loss is a plain mean over all labels."""
    return tiny_run("whole", *STEPS, *FEW_LABELS, "train.device_train_microbatch_size=32")


@pytest.mark.parametrize("microbatch", [16, 8, 1])
def test_losses_do_not_depend_on_the_microbatch(tiny_run: TinyRuns, whole_batches: Path, microbatch: int):
    run = tiny_run(f"micro-{microbatch}", *STEPS, *FEW_LABELS, f"train.device_train_microbatch_size={microbatch}")
    assert losses(run) == pytest.approx(losses(whole_batches), rel=1e-5)
    sizes = [[json.loads(line)["batch_size"] for line in (r / "trace.jsonl").open()] for r in (run, whole_batches)]
    assert sizes[0] == sizes[1] and sizes[0][0] == 16 and sizes[0][-1] == 32


def test_a_chunked_loss_of_no_labels_is_zero(tiny_run: TinyRuns, whole_batches: Path):
    settings = ["train.device_train_microbatch_size=1", "model.loss_kernel=chunked"]
    run = tiny_run("chunked", *STEPS, *FEW_LABELS, *settings)
    assert losses(run) == pytest.approx(losses(whole_batches), rel=1e-5)
