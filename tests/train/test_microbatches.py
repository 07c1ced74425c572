"""Microbatches do not change what is learnt: neither the batch ramp nor the weights of labels depend on them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from unittest import mock

import pytest
import torch

from cram_composer.errors import CramError
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.tiny_runs import TinyRuns, compose_tiny, losses, record, run_tiny

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


AUTO = "train.device_train_microbatch_size=auto"


def test_auto_is_chosen_once_and_changes_no_loss(tiny_run: TinyRuns, whole_batches: Path):
    run = tiny_run("auto", *STEPS, *FEW_LABELS, AUTO)
    choice = record(run)["microbatch"]
    assert choice["rows"] == 32 and choice["measured"] and 0.0 < choice["memory_share"] < 0.5
    assert record(run)["config"]["train"]["device_train_microbatch_size"] == "auto"
    assert losses(run) == pytest.approx(losses(whole_batches), rel=1e-5)


def run_out_of_memory(data: Path, path: Path, settings: list[str]) -> str:
    """Train a tiny run that runs out of memory at its sixth step; return the error."""
    composed, forward, calls = compose_tiny(data, *settings), MaskedLMTrainingModel.forward, itertools.count(1)

    def failing(model: MaskedLMTrainingModel, batch: dict) -> object:
        if next(calls) == 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return forward(model, batch)

    with mock.patch.object(MaskedLMTrainingModel, "forward", failing), pytest.raises(CramError) as error:
        run_tiny(composed, path)
    return str(error.value)


def test_a_run_that_runs_out_of_memory_resumes_with_smaller_microbatches(tiny_run: TinyRuns):
    data, runs = tiny_run._data, tiny_run._runs
    settings = ["train.compile=off", "train.batch_size=32", AUTO]
    error = tiny_run.call(run_out_of_memory, data, runs / "oom", settings)
    assert "out of memory (CUDA out of memory. Tried" in error and "\n" not in error
    assert error.endswith("run the same command to resume with microbatches of fewer than 32 rows")
    failed = record(runs / "oom")
    assert failed["status"] == "failed" and failed["microbatch"]["too_large"] == 32
    done = record(tiny_run("oom", *settings))
    assert done["status"] == "finished" and done["microbatch"]["rows"] == 16
    assert done["attempts"][-1]["started_at_step"] == 5
    number = ["train.compile=off", "train.batch_size=32", "train.device_train_microbatch_size=32"]
    error = tiny_run.call(run_out_of_memory, data, runs / "oom-number", number)
    assert error.endswith("resume with train.device_train_microbatch_size=16 (was 32), or auto")
