from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

from cram_composer.models import losses
from cram_composer.models.crambert.heads import MaskedLMHead
from cram_composer.models.losses import LOSSES, choose_loss
from tests.models.tiny_models import tiny_model, training_batch


def loss_and_gradients(kernel: str, **settings) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model = tiny_model(logit_softcap=20.0, head_bias=True).train()
    model.head.loss = LOSSES[kernel]
    for name, value in settings.items():
        setattr(model.head, name, value)
    loss = model(**training_batch(rows=9)).loss
    return loss, list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_chunked_loss_equals_the_full_one(smoothing, monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK", 7)
    full, chunked = (loss_and_gradients(kernel, label_smoothing=smoothing) for kernel in ("full", "chunked"))
    assert torch.allclose(full[0], chunked[0], atol=1e-6)
    for expected, found in zip(full[1], chunked[1], strict=True):
        assert torch.allclose(expected, found, atol=1e-6)


def test_the_chunked_loss_holds_no_more_than_a_chunk_of_logits(monkeypatch):
    monkeypatch.setattr(losses, "_CHUNK", 8)
    seen = []
    original = MaskedLMHead.logits
    monkeypatch.setattr(MaskedLMHead, "logits", lambda self, hidden: seen.append(len(hidden)) or original(self, hidden))
    loss, _ = loss_and_gradients("chunked")
    assert max(seen) == 8
    assert loss.isfinite()


def test_smoothing_applies_only_in_training():
    model = tiny_model()
    batch = training_batch()
    plain = model.eval()(**batch).loss
    model.head.label_smoothing = 0.2
    assert torch.equal(model(**batch).loss, plain)
    smoothed = model.train()(**batch)
    logits, labels = smoothed.logits.flatten(0, 1), batch["labels"].flatten()
    assert torch.equal(smoothed.loss, F.cross_entropy(logits, labels, label_smoothing=0.2))
    assert smoothed.loss != plain


@pytest.mark.parametrize("kernel", ["full", "chunked"])
def test_only_evaluation_has_logits(kernel):
    model = tiny_model()
    model.head.loss = LOSSES[kernel]
    batch = training_batch()
    assert model.train()(**batch).logits is None
    assert model.eval()(**batch).logits.shape == (3, 5, 40)


def test_the_kernel_in_use_is_reported(caplog):
    assert choose_loss("full", "cpu") == (LOSSES["full"], "torch, full")
    with caplog.at_level(logging.WARNING):
        assert choose_loss("liger", "cpu") == (LOSSES["chunked"], "torch, chunked")
    assert "liger is unavailable (needs a GPU); using torch's chunked loss" in caplog.text
