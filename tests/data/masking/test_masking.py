"""Masking: choice and replacement of tokens, and constant shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cram_composer.config.schema.objective import MaskedLMConfig
from cram_composer.data.masking import IGNORED, MaskedLMCollator, build_collator, evaluation_collator

SPECIAL = (0, 1, 2, 3, 4)
MASK = 4


def rows(count: int = 256, length: int = 128, seed: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(seed).integers(5, 1000, (count, length)).astype(np.uint16)
    tokens[:, 17] = 3  # a separator in every row
    return tokens


def masked(
    collator: MaskedLMCollator, tokens: np.ndarray, probability: float, seed: int = 1
) -> dict[str, torch.Tensor]:
    return collator(tokens, probability, np.random.default_rng(seed))


@pytest.mark.parametrize("fixed", [True, False])
def test_labels_are_the_originals_and_other_tokens_are_untouched(fixed: bool):
    tokens = rows()
    collator = MaskedLMCollator(1000, SPECIAL, MASK, fixed_count=fixed)
    batch = masked(collator, tokens, 0.25)
    used = batch["labels"] != IGNORED
    original = torch.from_numpy(tokens.astype(np.int64)).gather(1, batch["masked_positions"])
    assert torch.equal(batch["labels"][used], original[used])
    restored = batch["input_ids"].scatter(1, batch["masked_positions"], original)
    assert torch.equal(restored, torch.from_numpy(tokens.astype(np.int64)))
    assert not (batch["masked_positions"][used] == 17).any()


def test_fixed_masking_is_the_papers_32_of_128_in_distinct_places():
    batch = masked(MaskedLMCollator(1000, SPECIAL, MASK), rows(), 0.25)
    assert batch["labels"].shape == (256, 32)
    assert (batch["labels"] != IGNORED).all()
    assert all(len(set(row.tolist())) == 32 for row in batch["masked_positions"])


def test_80_10_10():
    tokens = rows(2000)
    batch = masked(MaskedLMCollator(1000, SPECIAL, MASK), tokens, 0.25)
    inputs = batch["input_ids"].gather(1, batch["masked_positions"])
    count = inputs.numel()
    assert (inputs == MASK).sum() / count == pytest.approx(0.8, abs=0.01)
    assert (inputs == batch["labels"]).sum() / count == pytest.approx(0.1, abs=0.01)
    assert ((inputs >= 5) | (inputs == MASK)).all()  # no other special token is inserted


def test_all_mask():
    batch = masked(evaluation_collator(1000, SPECIAL, MASK), rows(), 0.15)
    assert batch["labels"].shape == (256, 19)
    assert (batch["input_ids"].gather(1, batch["masked_positions"]) == MASK).all()


def test_bernoulli_masks_each_token_alone_within_a_static_capacity():
    collator = MaskedLMCollator(1000, SPECIAL, MASK, fixed_count=False)
    batch = masked(collator, rows(4000), 0.25)
    counts = (batch["labels"] != IGNORED).sum(dim=1).float()
    assert batch["labels"].shape[1] == collator.capacity(128) < 64
    assert counts.mean() == pytest.approx(0.25 * 127, rel=0.01)
    assert counts.std() == pytest.approx((127 * 0.25 * 0.75) ** 0.5, rel=0.05)


def test_every_position_is_as_likely_as_any_other():
    batch = masked(MaskedLMCollator(1000, SPECIAL, MASK), rows(4000), 0.25)
    hits = torch.bincount(batch["masked_positions"].flatten(), minlength=128).float()
    ordinary = hits[torch.arange(128) != 17] / 4000
    assert hits[17] == 0
    assert ordinary.min() > 0.2 and ordinary.max() < 0.31


def test_a_lower_rate_uses_fewer_slots_of_the_same_shape():
    collator = build_collator(MaskedLMConfig(mlm_probability=0.3, final_mlm_probability=0.15), 1000, SPECIAL, MASK)
    high, low = masked(collator, rows(), 0.3), masked(collator, rows(), 0.15)
    assert high["labels"].shape == low["labels"].shape == (256, 38)
    assert ((low["labels"] != IGNORED).sum(dim=1) == 19).all()


def test_row_of_separators_is_not_masked():
    tokens = np.full((4, 128), 3, dtype=np.uint16)
    batch = masked(MaskedLMCollator(1000, SPECIAL, MASK), tokens, 0.25)
    assert (batch["labels"] == IGNORED).all() and (batch["input_ids"] == 3).all()


def test_the_same_seed_gives_the_same_masks_and_another_gives_others():
    collator, tokens = MaskedLMCollator(1000, SPECIAL, MASK), rows()
    first, again, other = (masked(collator, tokens, 0.25, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["masked_positions"], other["masked_positions"])


def test_special_tokens_anywhere_in_the_vocabulary():
    tokens = rows()
    tokens[:, 5] = 999
    batch = masked(MaskedLMCollator(1000, (0, 999), 998), tokens, 0.9)
    assert not (batch["masked_positions"] == 5).any()


PAD, SEP = 0, 3


def padded_rows() -> np.ndarray:
    """Return rows of 128 tokens: row 0 is full, row 1 has 40 tokens of two documents, row 2 is all padding."""
    tokens = rows(3)
    tokens[1, 39] = SEP
    tokens[1, 40:] = tokens[2] = PAD
    return tokens


def test_padding_is_neither_masked_nor_seen_and_short_rows_keep_their_rate():
    tokens = padded_rows()
    batch = masked(MaskedLMCollator(1000, SPECIAL, MASK, pad_id=PAD), tokens, 0.25)
    assert (batch["labels"] != IGNORED).sum(dim=1).tolist() == [32, 10, 0]
    assert batch["labels"].shape == (3, 32)
    assert batch["attention_mask"].dtype == torch.int64
    assert batch["attention_mask"].sum(dim=1).tolist() == [128, 40, 1]  # attention to nothing is undefined
    assert torch.equal(batch["attention_mask"][:2].bool(), torch.from_numpy(tokens[:2] != PAD))
    assert not (batch["labels"] == PAD).any()
    assert "document_ids" not in batch


def test_documents_are_those_of_the_row_before_it_was_masked():
    tokens = padded_rows()
    collator = build_collator(MaskedLMConfig(mlm_probability=0.9), 1000, SPECIAL, MASK, PAD, SEP)
    batch = masked(collator, tokens, 0.9)
    ids = batch["document_ids"]
    assert ids[1].tolist() == [0] * 18 + [1] * 22 + [-1] * 88
    assert (ids[2] == -1).all()
    without_padding = masked(evaluation_collator(1000, SPECIAL, MASK, sep_id=SEP), tokens[:1], 0.15)
    assert without_padding["document_ids"][0].tolist() == [0] * 18 + [1] * 110
    assert "attention_mask" not in without_padding


def test_rows_without_padding_are_masked_alike_with_and_without_it():
    plain, aware = (masked(MaskedLMCollator(1000, SPECIAL, MASK, pad_id=pad), rows(), 0.25) for pad in (None, PAD))
    assert all(torch.equal(plain[name], aware[name]) for name in plain)
