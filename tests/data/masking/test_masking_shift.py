"""Masked next-token prediction, causal rows, and masks that do not depend on the rank."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cram_composer.config.schema.objective import MaskedLMConfig
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.data.masking import IGNORED, MaskedLMCollator, evaluation_collator
from cram_composer.data.masking.row_random import RowRandom

SPECIAL = (0, 1, 2, 3, 4)
PAD, SEP, MASK = 0, 3, 4
JOINS = np.where(np.arange(1000) % 4 == 3, 0x11, 0x10).astype(np.uint8)


def rows(count: int = 256, length: int = 128) -> NDArray:
    tokens = np.random.default_rng(0).integers(5, 1000, (count, length)).astype(np.uint16)
    tokens[:, 17] = SEP
    return tokens


def masked(tokens: NDArray, probability: float = 0.25, seed: int = 1, **settings) -> dict[str, torch.Tensor]:
    collator = MaskedLMCollator(1000, SPECIAL, MASK, max_probability=probability, **settings)
    return collator(tokens, probability, np.random.default_rng(seed))


def test_shifted_label_is_the_token_after_its_position():
    tokens = rows()
    batch = masked(tokens, shift=True)
    assert batch["labels"].shape == (256, 32)
    assert (batch["labels"] != IGNORED).all()
    ids = torch.from_numpy(tokens.astype(np.int64))
    assert torch.equal(ids.gather(1, batch["masked_positions"] + 1), batch["labels"])
    assert batch["masked_positions"].min() == 0  # predicts the second token; the first is never chosen
    assert torch.equal(batch["input_ids"][:, 0], ids[:, 0])
    at_label = batch["input_ids"].gather(1, batch["masked_positions"] + 1)
    assert (at_label == MASK).float().mean() == pytest.approx(0.8, abs=0.02)
    untouched = torch.ones_like(ids).scatter(1, batch["masked_positions"] + 1, 0).bool()
    assert torch.equal(batch["input_ids"][untouched], ids[untouched])


def test_shift_only_changes_the_positions_of_predictions():
    tokens = rows()
    plain, shifted = masked(tokens), masked(tokens, shift=True)
    alike = (plain["masked_positions"] > 0).all(dim=1)
    assert 100 < alike.sum() < 256
    for name in ("input_ids", "labels"):
        assert torch.equal(plain[name][alike], shifted[name][alike])
    assert torch.equal(plain["masked_positions"][alike] - 1, shifted["masked_positions"][alike])


def test_first_token_of_a_document_is_not_predicted_from_the_previous_one():
    together, apart = (masked(rows(), 0.9, shift=True, sep_id=sep) for sep in (None, SEP))
    assert (together["masked_positions"] == 17).any()
    used = apart["labels"] != IGNORED
    assert not (apart["masked_positions"][used] == 17).any()
    ids = apart["document_ids"]
    at = apart["masked_positions"]
    assert torch.equal(ids.gather(1, at)[used], ids.gather(1, at + 1)[used])


@pytest.mark.parametrize("unit", ["word", "span"])
def test_a_word_whose_first_token_cannot_be_read_is_not_chosen_at_all(unit: str):
    tokens = rows()
    tokens[:, 1] = 7  # continues the first word of the row
    batch = masked(tokens, 0.9, shift=True, unit=unit, joins=JOINS)
    used = batch["labels"] != IGNORED
    assert batch["masked_positions"][used].min() >= 1


def test_unused_slots_name_a_column_of_the_row():
    tokens = rows()
    tokens[:, 2:] = PAD
    batch = masked(tokens, shift=True, pad_id=PAD)
    assert batch["masked_positions"].min() >= 0
    assert (batch["labels"] != IGNORED).sum(dim=1).max() == 1


def test_held_out_rows_are_read_as_the_model_was_trained():
    tokens = rows()
    collator = evaluation_collator(1000, SPECIAL, MASK, objective=MaskedLMConfig(shift=True))
    batch = collator(tokens, 0.15, np.random.default_rng(1))
    assert batch["labels"].shape == (256, 19)
    assert (batch["input_ids"].gather(1, batch["masked_positions"] + 1) == MASK).all()
    assert "causal" not in batch


def test_causal_rows_keep_their_tokens_and_predict_some_of_the_next_ones():
    tokens = rows(4000)
    batch = masked(tokens, shift=True, causal_fraction=0.25)
    causal = batch["causal"]
    assert causal.dtype == torch.bool and causal.shape == (4000,)
    assert causal.float().mean() == pytest.approx(0.25, abs=0.02)
    ids = torch.from_numpy(tokens.astype(np.int64))
    assert torch.equal(batch["input_ids"][causal], ids[causal])
    assert (batch["labels"] != IGNORED).all()  # the same number in every row, so that all rows have equal weight
    assert torch.equal(ids.gather(1, batch["masked_positions"] + 1), batch["labels"])
    hits = torch.bincount(batch["masked_positions"][causal].flatten(), minlength=128) / causal.sum()
    readable = hits[torch.tensor([c for c in range(127) if c != 16])]  # the token after 16 is special
    assert hits[16] == hits[127] == 0
    assert readable.min() > 0.2 and readable.max() < 0.31  # uniform over next tokens: no bias


def test_the_masked_rows_of_a_hybrid_are_those_of_masked_next_token_prediction():
    tokens = rows()
    for unit in ("token", "word", "span"):
        settings = {"shift": True, "unit": unit, "joins": JOINS}
        alone, hybrid = masked(tokens, **settings), masked(tokens, **settings, causal_fraction=0.25)
        causal = hybrid.pop("causal")
        if unit != "span":  # span lengths are drawn after the choice of rows
            assert all(torch.equal(alone[name][~causal], hybrid[name][~causal]) for name in alone)
        assert (hybrid["labels"][causal] != IGNORED).all()  # single tokens always fit


def test_microbatches_know_which_of_their_rows_are_causal():
    batch = masked(rows(8), shift=True, causal_fraction=0.5)
    loader = SimpleNamespace(rows=8, microbatch=4)
    parts = TrainLoader.split_batch(loader, batch, 4)  # type: ignore[arg-type]
    assert [part["causal"].tolist() for part in parts] == [batch["causal"][:4].tolist(), batch["causal"][4:].tolist()]


def test_no_causal_rows_and_all():
    assert "causal" not in masked(rows(), shift=True)
    assert masked(rows(), shift=True, causal_fraction=1.0)["causal"].all()


@pytest.mark.parametrize(
    "hybrid", [{}, {"shift": True, "causal_fraction": 0.5, "sep_id": SEP}], ids=["masked", "hybrid"]
)
@pytest.mark.parametrize(
    "settings",
    [{}, {"fixed_count": False}, {"scheme": "all-mask"}, {"unit": "word"}, {"unit": "span"}],
    ids=["token", "bernoulli", "all-mask", "word", "span"],
)
def test_masks_of_a_row_do_not_depend_on_the_rank(settings: dict, hybrid: dict):
    tokens = rows(24)
    collator = MaskedLMCollator(1000, SPECIAL, MASK, joins=JOINS, pad_id=PAD, **settings, **hybrid)
    alone = collator(tokens, 0.2, RowRandom([5]).seek(3, 0))
    shared = [collator(tokens[first : first + 8], 0.2, RowRandom([5]).seek(3, first)) for first in (0, 8, 16)]
    assert all(torch.equal(alone[name], torch.cat([part[name] for part in shared])) for name in alone)
    other = collator(tokens, 0.2, RowRandom([5]).seek(4, 0))
    assert not torch.equal(alone["labels"], other["labels"])
