"""Label smoothing of the training loss only."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from composer.core import Event

from cram_composer.algorithms.label_smoothing import LabelSmoothing
from cram_composer.config.schema.algorithms import LabelSmoothingConfig
from cram_composer.models.training_model import MaskedLMTrainingModel
from tests.models.tiny_models import tiny_model, training_batch


def smoothed(smoothing: float, kernel: str = "full") -> MaskedLMTrainingModel:
    model = MaskedLMTrainingModel(tiny_model())
    model.use_loss(kernel, "cpu")
    algorithm = LabelSmoothing(LabelSmoothingConfig(smoothing=smoothing))
    state = SimpleNamespace(model=model)
    assert algorithm.match(Event.INIT, state)
    algorithm.apply(Event.INIT, state, None)
    return model


@pytest.mark.parametrize("kernel", ["full", "chunked"])
def test_the_training_loss_is_that_of_smoothed_targets(kernel: str):
    batch, model = training_batch(), smoothed(0.1, kernel)
    logits = MaskedLMTrainingModel(tiny_model())(batch).logits.flatten(0, 1)
    labels = batch["labels"].flatten()
    targets = torch.full_like(logits, 0.1 / 40)  # equation 7 of the paper: (1 - e) one-hot + e / K
    targets[torch.arange(len(labels)), labels.clamp(min=0)] += 0.9
    expected = -(targets * logits.log_softmax(-1)).sum(-1)[labels != -100].mean()
    torch.testing.assert_close(model(batch).loss, expected)


def test_evaluation_is_unchanged():
    batch = training_batch()
    plain, model = MaskedLMTrainingModel(tiny_model()).eval(), smoothed(0.1).eval()
    found = []
    for one in (plain, model):
        metric = one.get_metrics(is_train=False)["loss"]
        outputs = one.eval_forward(batch)
        one.update_metric(batch, outputs, metric)
        found.append((outputs.loss, metric.compute()))
    assert found[0] == found[1]


def test_zero_smoothing_changes_nothing():
    batch = training_batch()
    plain = MaskedLMTrainingModel(tiny_model())
    model = smoothed(0.0)
    assert torch.equal(model(batch).loss, plain(batch).loss)
