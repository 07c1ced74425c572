"""Log-probabilities of masked tokens equal those of a plain forward pass, for any batching."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cram_composer.errors import CramError
from cram_composer.evaluation.model_source import find_model
from cram_composer.evaluation.zero_shot.masked_scoring import MaskedRow, MaskedScorer, length_batches, logits_at
from tests.evaluation.tiny_folders import masked_lm, save

KINDS = ["bert", "roberta", "distilbert", "modernbert", "crambert", "crambert-shift"]


def scorer(folder: Path, batch_tokens: int = 4096) -> MaskedScorer:
    return MaskedScorer(find_model(str(folder)), 1, torch.device("cpu"), "fp32", batch_tokens)


def rows(count: int = 30) -> list[MaskedRow]:
    """Return rows of 4 to 20 tokens, one to three of them masked."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for number in range(count):
        length = 4 + number % 17
        ids = torch.randint(5, 80, (length,), generator=generator).tolist()
        places = torch.randperm(length, generator=generator)[: 1 + number % 3].tolist()
        targets = [ids[place] for place in places]
        for place in places:
            ids[place] = 4
        made.append(MaskedRow(tuple(ids), tuple(places), tuple(targets)))
    return made


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_decoder_sees_only_the_requested_positions(kind: str):
    model = masked_lm(kind, 80).eval()
    ids = torch.randint(5, 80, (3, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    places = torch.tensor([[0, 0, 1, 2], [1, 11, 4, 0]])
    decoded = []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: decoded.append(out.shape))
    found = logits_at(model, ids, mask, places)
    hook.remove()
    assert decoded == [(4, 80)]
    everywhere = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(found, everywhere[places[0], places[1]], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_model_without_a_hookable_decoder(monkeypatch: pytest.MonkeyPatch):
    model = masked_lm("bert", 80).eval()
    ids = torch.randint(5, 80, (3, 12), generator=torch.Generator().manual_seed(2))
    places = torch.tensor([[0, 2], [3, 5]])
    hooked = logits_at(model, ids, torch.ones_like(ids), places)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    torch.testing.assert_close(logits_at(model, ids, torch.ones_like(ids), places), hooked, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_change_nothing(kind: str, tmp_path: Path):
    save(tmp_path, kind)
    alone = scorer(tmp_path, batch_tokens=1)(rows())
    for tokens in (50, 4096):
        together = scorer(tmp_path, batch_tokens=tokens)(rows())
        for one, other in zip(alone, together, strict=True):
            assert one == pytest.approx(other, abs=2e-5)


def test_equal_rows_have_equal_scores_to_the_last_bit(tmp_path: Path):
    save(tmp_path)
    found = scorer(tmp_path, batch_tokens=40)([*rows(), *rows()])
    assert found[:30] == found[30:]


def test_batches_hold_every_row_once_within_the_budget():
    lengths = [3, 50, 7, 7, 120, 1, 30]
    made = list(length_batches(lengths, 60))
    assert sorted(row for batch in made for row in batch) == list(range(7))
    assert made[0] == [4]  # longer than a batch
    assert all(len(batch) * max(lengths[row] for row in batch) <= 60 for batch in made[1:])


def test_untrained_weights_are_those_of_the_seed(tmp_path: Path):
    save(tmp_path)

    def score(name: str, seed: int) -> list[list[float]]:
        return MaskedScorer(find_model(name), seed, torch.device("cpu"), "fp32", 512)(rows(3))

    untrained = f"untrained:{tmp_path}"
    assert score(untrained, 1) == score(untrained, 1)
    assert score(untrained, 1) != score(untrained, 2)
    assert score(untrained, 1) != score(str(tmp_path), 1)


def test_a_model_without_a_masked_lm_head_is_refused(tmp_path: Path):
    save(tmp_path)
    masked_lm("bert", 80).bert.save_pretrained(tmp_path)
    with pytest.raises(CramError, match=r"not a masked LM: it lacks weights of BertForMaskedLM, such as cls\."):
        scorer(tmp_path)
