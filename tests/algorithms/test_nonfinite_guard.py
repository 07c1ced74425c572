"""Steps with non-finite losses or gradients are skipped."""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event, Precision
from composer.devices import DeviceCPU

from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.errors import CramError
from tests.conftest import REPOSITORY


def state(loss: float = 1.0, gradient: float = 1.0, batch: int = 3) -> SimpleNamespace:
    model = torch.nn.Linear(2, 1)
    for p in model.parameters():
        p.grad = torch.full_like(p, gradient)
    return SimpleNamespace(
        model=model,
        optimizers=[torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)],
        loss={"total": torch.tensor(loss)},
        precision=Precision.FP32,
        device=DeviceCPU(),
        timestamp=SimpleNamespace(batch=batch),
    )


def step(guard: NonFiniteGuard, now: SimpleNamespace) -> bool:
    """Take one optimizer step with weight decay; return True if it changed a weight."""
    before = [p.detach().clone() for p in now.model.parameters()]
    guard.apply(Event.AFTER_LOSS, now, None)
    guard.apply(Event.AFTER_TRAIN_BATCH, now, None)
    now.optimizers[0].step()
    return any(not torch.equal(a, b) for a, b in zip(before, now.model.parameters(), strict=True))


def no_rollback(now, logger) -> bool:
    raise AssertionError("no rollback was asked for")


def test_finite_steps_pass():
    assert step(NonFiniteGuard("skip-step", 3, no_rollback), state())


@pytest.mark.parametrize("bad", [{"loss": float("nan")}, {"loss": float("inf")}, {"gradient": float("nan")}])
def test_a_skipped_step_changes_no_weight(bad: dict[str, float], caplog: pytest.LogCaptureFixture):
    guard = NonFiniteGuard("skip-step", 3, no_rollback)
    with caplog.at_level(logging.WARNING):
        assert not step(guard, state(**bad))
    assert "step 3" in caplog.text and "not finite" in caplog.text
    assert guard.skipped == 1


def test_stop_ends_the_run_and_applies_nothing():
    now = state(loss=float("nan"))
    guard = NonFiniteGuard("stop", 3, no_rollback)
    guard.apply(Event.AFTER_LOSS, now, None)  # one of several microbatches; the last loss is finite
    now.loss = {"total": torch.tensor(1.0)}
    guard.apply(Event.AFTER_LOSS, now, None)
    with pytest.raises(CramError, match=r"step 3: the loss is not finite.*on_nonfinite is stop"):
        guard.apply(Event.AFTER_TRAIN_BATCH, now, None)
    assert all(p.grad is None for p in now.model.parameters())


def test_too_many_in_a_row_end_the_run_under_any_policy():
    guard = NonFiniteGuard("skip-step", 2, no_rollback)
    bad = float("inf")
    step(guard, state(gradient=bad, batch=0))
    step(guard, state(gradient=bad, batch=1))
    step(guard, state(batch=2))  # a good step resets the count
    step(guard, state(gradient=bad, batch=3))
    step(guard, state(batch=4))
    step(guard, state(gradient=bad, batch=4))  # the second pass of a step of SAM
    with pytest.raises(CramError, match="3 steps in a row"):
        step(guard, state(gradient=bad, batch=5))


def test_rollback_restores_the_last_checkpoint(caplog: pytest.LogCaptureFixture):
    asked = []
    guard = NonFiniteGuard("rollback", 3, lambda now, logger: asked.append(now) is None)
    now = state(loss=float("nan"))
    with caplog.at_level(logging.WARNING):
        assert not step(guard, now)
    assert asked == [now] and "restored the last checkpoint" in caplog.text


def test_a_step_that_the_optimizer_skips_is_judged_by_its_own_losses(caplog: pytest.LogCaptureFixture):
    guard = NonFiniteGuard("skip-step", 3, no_rollback, optimizer_skips=True)
    events = (Event.BEFORE_TRAIN_BATCH, Event.AFTER_LOSS, Event.AFTER_LOSS, Event.AFTER_TRAIN_BATCH)
    with caplog.at_level(logging.WARNING):
        for batch, loss in enumerate((float("nan"), 1.0, 1.0)):
            now = state(loss=loss, batch=batch)
            for event in events:
                if guard.match(event, now):
                    guard.apply(event, now, None)
            if batch != 1:
                guard.step_was_skipped()  # the last step is skipped for a gradient
    assert [line.split(":")[1] for line in caplog.messages] == [" the loss is not finite", " a gradient is not finite"]


def test_overflow_under_fp16_is_left_to_the_loss_scaler():
    guard = NonFiniteGuard("stop", 3, no_rollback)
    for batch in range(3):
        now = state(gradient=float("inf"), batch=batch)
        now.precision = Precision.AMP_FP16
        guard.apply(Event.AFTER_TRAIN_BATCH, now, None)
        assert all(p.grad.isinf().all() for p in now.model.parameters())  # which the scaler must see
    assert guard.skipped == 3
    now.timestamp.batch = 3
    with pytest.raises(CramError, match=r"overflowed in fp16 for 4 steps in a row, more than train.max_nonfinite = 3"):
        guard.apply(Event.AFTER_TRAIN_BATCH, now, None)
    guard = NonFiniteGuard("skip-step", 3, no_rollback)
    for batch in range(0, 20, 2):  # not in a row
        now.timestamp.batch = batch
        guard.apply(Event.AFTER_TRAIN_BATCH, now, None)
    assert guard.skipped == 10


@pytest.mark.parametrize("whole", [True, False])
def test_the_norm_is_provided_for_clipping_if_it_covers_all_gradients(whole: bool):
    guard, now = NonFiniteGuard("skip-step", 3, no_rollback, complete=whole), state(gradient=2.0)
    step(guard, now)
    if whole:
        assert float(guard.norm) == pytest.approx(12.0**0.5)  # two weights and a bias
    else:
        assert guard.norm is None


# The loss of step 5 is NaN, and the newest checkpoint is the one after three steps.
WHOLE_RUN = """
import sys
import threading
from pathlib import Path
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.tiny_runs import compose_tiny, run_tiny

data, folder = map(Path, sys.argv[1:])
settings = ["budget={wall: null, steps: 8}", "train.on_nonfinite=rollback", "algorithms.batch_size_ramp=null"]
original, calls, kept = MaskedLMTrainingModel.loss, 0, {}

def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}

def loss(self, outputs, batch, *arguments, **options):
    global calls, kept
    value = original(self, outputs, batch, *arguments, **options)
    if not self.training:
        return value
    step, microbatch = divmod(calls, 2)
    calls += 1
    if step == 3 and microbatch == 0:
        kept = weights(self)
    if step == 5 and microbatch == 1:
        assert any(not tensor.equal(kept[name]) for name, tensor in weights(self).items())
        for thread in threading.enumerate():
            if thread.name == "checkpoint":  # it completes the newest one
                thread.join()
        for file in (folder / "checkpoints").iterdir():
            if int(file.stem.split("-")[1]) > 3:
                file.unlink()
        return {"total": value["total"] * float("nan")}
    if step == 6 and microbatch == 0:
        assert all(tensor.equal(kept[name]) for name, tensor in weights(self).items()), "not rolled back"
        print("rolled back")
    return value

MaskedLMTrainingModel.loss = loss
run_tiny(compose_tiny(data, *settings), folder)
"""


def test_a_run_rolls_back_and_continues(tiny_data: Path, tmp_path: Path):
    command = [sys.executable, "-c", WHOLE_RUN, str(tiny_data), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr
    assert "rolled back\n" in result.stdout
    assert "step 5: the loss is not finite: restored the last checkpoint" in result.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "finished" and math.isfinite(record["metrics"]["validation_loss"])
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "trace.jsonl").read_text().splitlines()]
    assert steps == list(range(8)), "the data position continued"
