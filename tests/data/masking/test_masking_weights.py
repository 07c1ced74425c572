"""Weights of tokens in the choice of tokens to mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cram_composer.data.masking import IGNORED, MaskedLMCollator, TokenWeights

SPECIAL = (0, 1, 2, 3, 4)
ROW = np.arange(5, 45, dtype=np.uint16)  # every token once


def choices(fixed: bool, probability: float, weights: np.ndarray, count: int = 20000) -> torch.Tensor:
    """Return how often each token of the vocabulary [45] is chosen per row."""
    collator = MaskedLMCollator(45, SPECIAL, 4, fixed_count=fixed)
    rows = np.tile(ROW, (count, 1))
    batch = collator(rows, probability, np.random.default_rng(1), TokenWeights(weights.astype(np.float32)))
    labels = batch["labels"][batch["labels"] != IGNORED]
    return torch.bincount(labels, minlength=45) / count


def test_one_token_of_a_row_is_chosen_in_proportion_to_its_weight() -> None:
    weights = np.random.default_rng(0).uniform(0.1, 3.0, 45)
    expected = torch.from_numpy(weights[5:] / weights[5:].sum())
    assert choices(True, 0.025, weights)[5:] == pytest.approx(expected, abs=0.006)


def test_tokens_are_drawn_one_after_another_without_replacement() -> None:
    weights, random = np.random.default_rng(0).uniform(0.1, 3.0, 45), np.random.default_rng(2)
    share = weights[5:] / weights[5:].sum()
    drawn = np.concatenate([random.choice(ROW, 10, replace=False, p=share) for _ in range(20000)])
    expected = torch.from_numpy(np.bincount(drawn, minlength=45) / 20000)
    assert choices(True, 0.25, weights) == pytest.approx(expected, abs=0.02)


def test_independent_tokens_keep_the_rate_of_their_row() -> None:
    weights = np.random.default_rng(0).uniform(0.5, 1.5, 45)
    found = choices(False, 0.2, weights)[5:]
    assert found == pytest.approx(torch.from_numpy(0.2 * weights[5:] / weights[5:].mean()), abs=0.015)


@pytest.mark.parametrize("fixed", [True, False])
def test_equal_weights_choose_every_token_alike(fixed: bool) -> None:
    found = choices(fixed, 0.25, np.full(45, 0.3))[5:]
    assert found == pytest.approx(torch.full((40,), 0.25), abs=0.02)


def test_special_tokens_stay_out_at_any_weight() -> None:
    collator, weights = MaskedLMCollator(45, SPECIAL, 4), np.full(45, 0.01, dtype=np.float32)
    weights[:5] = 1e6
    rows = np.tile(ROW, (50, 1))
    rows[:, 7] = 3
    batch = collator(rows, 0.25, np.random.default_rng(1), TokenWeights(weights))
    assert (batch["labels"] >= 5).all()
