"""Adaptive masking: the weights against plain arithmetic, and their state."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Event
from transformers import BertConfig, BertForMaskedLM
from transformers.modeling_outputs import MaskedLMOutput

from cram_composer.algorithms.adaptive_masking import AdaptiveMasking
from cram_composer.data.masking import IGNORED, MaskedLMCollator
from cram_composer.models.crambert.configuration_crambert import CramBertConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.training_model import MaskedLMTrainingModel

VOCABULARY = 12


def loader() -> Any:
    return SimpleNamespace(collator=MaskedLMCollator(VOCABULARY, (0, 1), 1), token_weights=None)


def small(kind: str) -> MaskedLMTrainingModel:
    sizes: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 12}
    if kind == "bert":
        return MaskedLMTrainingModel(BertForMaskedLM(BertConfig(intermediate_size=8, **sizes)))
    return MaskedLMTrainingModel(CramBertForMaskedLM(CramBertConfig(intermediate_size=8, **sizes)))


def step(masking: AdaptiveMasking, number: int, labels: list[int], found: list[int], kind: str = "crambert") -> None:
    """Take a training step whose logits predict `found` where `labels` are."""
    logits = torch.nn.functional.one_hot(torch.tensor([found]), VOCABULARY).float()
    places = torch.arange(len(labels))[None]
    if kind == "bert":  # predicts every position, here two more
        logits = torch.cat((torch.zeros(1, 2, VOCABULARY), logits), dim=1)
        places = places + 2
    state = SimpleNamespace(
        batch={"labels": torch.tensor([labels]), "masked_positions": places},
        outputs=MaskedLMOutput(logits=logits),
        timestamp=SimpleNamespace(batch=number),
    )
    for event in (Event.BEFORE_DATALOADER, Event.AFTER_FORWARD):
        assert masking.match(event, state)
        masking.apply(event, state, None)


@pytest.mark.parametrize("kind", ["crambert", "bert"])
def test_weights_are_those_of_the_shares_of_wrong_predictions(kind: str) -> None:
    rows = loader()
    masking = AdaptiveMasking(2, rows, small(kind))
    step(masking, 0, [5, 5, 6, IGNORED], [5, 7, 6, 0], kind)
    step(masking, 1, [6, 8, IGNORED, IGNORED], [6, 9, 9, 9], kind)
    assert rows.token_weights is None
    step(masking, 2, [5, 5, 5, 5], [5, 5, 5, 5], kind)
    wrong = np.full(VOCABULARY, 0.5)
    wrong[5], wrong[6], wrong[8] = 1 - 1.5 / 3, 1 - 2.5 / 3, 1 - 0.5 / 2
    first = 0.2 + 0.8 * wrong
    first /= first.mean()
    assert rows.token_weights.values == pytest.approx(first, rel=1e-6)
    step(masking, 3, [IGNORED] * 4, [0] * 4, kind)
    step(masking, 4, [IGNORED] * 4, [0] * 4, kind)
    wrong = np.full(VOCABULARY, 0.5)
    wrong[5] = 1 - 4.5 / 5
    second = 0.2 * first + 0.8 * wrong
    assert rows.token_weights.values == pytest.approx(second / second.mean(), rel=1e-6)


def test_a_token_that_is_always_predicted_is_still_masked() -> None:
    rows = loader()
    masking = AdaptiveMasking(1, rows, small("crambert"))
    for number in range(12):
        step(masking, number, [5] * 1000, [5] * 1000)
    assert 0.0125 <= rows.token_weights.values[5] < 0.03  # of a mean of 1


def test_the_state_continues_between_two_updates() -> None:
    rows, others = loader(), loader()
    masking, restored = (AdaptiveMasking(2, each, small("crambert")) for each in (rows, others))
    for number in range(3):
        step(masking, number, [5, 6], [5, 5])
    restored.load_state_dict(copy.deepcopy(masking.state_dict()))
    assert others.token_weights.values == pytest.approx(rows.token_weights.values)
    for number in (3, 4):
        step(masking, number, [7, 7], [7, 8])
        step(restored, number, [7, 7], [7, 8])
    assert (others.token_weights.values == rows.token_weights.values).all()


def test_kept_logits_change_neither_loss_nor_gradients() -> None:
    model = small("crambert")
    model.use_loss("full", "cpu")
    batch = {
        "input_ids": torch.randint(2, 12, (3, 8)),
        "masked_positions": torch.tensor([[0, 3]] * 3),
        "labels": torch.tensor([[4, 5], [6, IGNORED], [7, 8]]),
    }
    found = []
    for keep in (False, True):
        if keep:
            model.keep_logits()
        outputs = model(batch)
        gradient = torch.autograd.grad(outputs.loss, list(model.parameters()), allow_unused=True)
        found.append((outputs.loss, [g for g in gradient if g is not None]))
        assert (outputs.logits is None) != keep
    assert not outputs.logits.requires_grad and outputs.logits.shape == (3, 2, 12)
    torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=0.0)
