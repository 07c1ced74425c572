"""Each objective recipe changes what its card claims and nothing else."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from cram_composer.config import compose, compose_run
from cram_composer.config.schema.objective import MaskedLMConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run
from cram_composer.data.masking import IGNORED, build_collator, last_collator, mean_capacity
from cram_composer.errors import ConfigError

JOINS = np.where(np.arange(1000) % 4 == 3, 0x11, 0x10).astype(np.uint8)
CHANGES: dict[str, dict[str, Any]] = {
    "mask-15": {"mlm_probability": 0.15},
    "mask-30": {"mlm_probability": 0.3},
    "mask-40": {"mlm_probability": 0.4},
    "mask-schedule": {"mlm_probability": 0.3, "final_mlm_probability": 0.15},
    "all-mask": {"masking": "all-mask"},
    "bernoulli-masking": {"positions": "bernoulli"},
    "whole-word-masking": {"unit": "word"},
    "span-masking": {"unit": "span"},
    "masked-next-token": {"shift": True},
    "adaptive-masking": {"adapt_every": 200},
    "hybrid-causal": {"shift": True, "causal_fraction": 0.0625},
}
FINAL: dict[str, dict[str, Any]] = {  # recipes of several rates or phases
    "mask-step": {"mlm_probability": 0.4, "final_mlm_probability": 0.2, "mask_schedule": "step"},
    "all-mask-late": {"final_masking": "all-mask"},
    "random-mask-rate": {"mlm_probability": 0.8, "min_mlm_probability": 0.0, "masking": "all-mask"},
    "causal-first": {
        "shift": True, "causal_fraction": 1.0, "final_causal_fraction": 0.0, "causal_labels": "all", "switch": 0.25,
    },
}  # fmt: skip


def composed(*recipes: str, **values: Any) -> RunConfig:
    overrides = [f"recipes=[{','.join(('crammed-bert', *recipes))}]"]
    overrides += [f"objective.{key}={value}" for key, value in values.items()]
    config = compose(RunConfig, "yamls/cram-cpu.yaml", overrides).config
    check_run(config, world_size=1)
    return config


def masked(objective: MaskedLMConfig, count: int = 2000) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    tokens = np.random.default_rng(0).integers(5, 1000, (count, 128)).astype(np.uint16)
    tokens[:, 17] = 3
    collator = build_collator(objective, 1000, (0, 1, 2, 3, 4), 4, joins=JOINS)
    batch = collator(tokens, objective.mlm_probability, np.random.default_rng(1))
    return torch.from_numpy(tokens.astype(np.int64)), batch


@pytest.mark.parametrize("name", CHANGES | FINAL)
def test_a_recipe_changes_the_values_it_names_and_no_other(name: str):
    before, after = vars(composed()), vars(composed(name))
    assert vars(before["objective"]) | (CHANGES | FINAL)[name] == vars(after["objective"])
    assert all(before[key] == after[key] for key in before.keys() - {"objective", "recipes"})


@pytest.mark.parametrize("name", CHANGES)
def test_its_batches_hold_the_rate_it_says_and_leave_the_other_tokens_alone(name: str):
    objective = composed(name).objective
    ids, batch = masked(objective)
    used = batch["labels"] != IGNORED
    at = batch["masked_positions"] + objective.shift
    assert torch.equal(ids.gather(1, at.clamp(max=127))[used], batch["labels"][used])
    rate = used.sum() / ids.numel()
    assert rate == pytest.approx(objective.mlm_probability, rel=0.03)
    touched = torch.zeros_like(ids).scatter_add(1, at.clamp(max=127), used.long()).bool()
    assert torch.equal(batch["input_ids"][~touched], ids[~touched])
    masks = (batch["input_ids"][touched] == 4).float().mean()
    kept = 0.0625 if name == "hybrid-causal" else 0.0  # the tokens of causal rows
    assert masks == pytest.approx(1.0 if name == "all-mask" else 0.8 * (1.0 - kept), abs=0.02)


def phases(name: str, count: int = 64) -> list[dict[str, torch.Tensor]]:
    """Return a batch before and one after the switch, each at the rate of its time."""
    objective = composed(name).objective
    tokens = np.random.default_rng(0).integers(5, 1000, (count, 128)).astype(np.uint16)
    first = build_collator(objective, 1000, (0, 1, 2, 3, 4), 4, joins=JOINS)
    rates = objective.mlm_probability, objective.final_mlm_probability or objective.mlm_probability
    both = zip((first, last_collator(first, objective)), rates, strict=True)
    return [collator(tokens, rate, np.random.default_rng(1)) for collator, rate in both]


def test_labels_have_room_for_the_rate_of_their_step():
    first, last = phases("mask-step")
    assert first["labels"].shape == (64, 51) and last["labels"].shape == (64, 26)
    assert (first["labels"] != IGNORED).all() and (last["labels"] != IGNORED).all()
    first, last = phases("mask-schedule")
    assert first["labels"].shape == last["labels"].shape == (64, 38)


def test_late_masks_replace_every_chosen_token_and_choose_the_same_ones():
    first, last = phases("all-mask-late")
    assert torch.equal(first["labels"], last["labels"])
    masks = [(batch["input_ids"] == 4).sum() / batch["labels"].numel() for batch in (first, last)]
    assert masks[0] == pytest.approx(0.8, abs=0.03) and masks[1] == 1.0


def test_the_rate_of_a_row_is_drawn_uniformly():
    batch, _ = phases("random-mask-rate", 4000)
    counts = (batch["labels"] != IGNORED).sum(dim=1)
    assert batch["labels"].shape == (4000, 102)
    assert counts.min() == 1 and counts.max() == 102  # a row always has a label
    tenths = torch.histc(counts / 102, 10, 0.0, 1.0) / 4000
    assert tenths.min() > 0.08 and tenths.max() < 0.12
    assert ((batch["input_ids"] == 4).sum(dim=1) == counts).all()


def test_causal_steps_predict_every_next_token_and_later_ones_are_masked():
    first, last = phases("causal-first")
    assert first["causal"].all() and "causal" not in last
    assert first["labels"].shape == (64, 128) and last["labels"].shape == (64, 32)
    used = first["labels"] != IGNORED
    assert (used.sum(dim=1) == 127).all()  # the first token has no position before it
    assert torch.equal(first["labels"][:, :127], first["input_ids"][:, 1:])
    assert torch.equal(first["masked_positions"][:, :127], torch.arange(127).expand(64, 127))
    assert (last["input_ids"] == 4).any()


@pytest.mark.parametrize("settings", [{}, {"unit": "word"}, {"positions": "bernoulli"}])
def test_masked_rows_beside_complete_causal_ones_are_masked_at_their_rate(settings: dict[str, Any]):
    objective = composed("hybrid-causal", causal_labels="all", **settings).objective
    ids, batch = masked(objective)
    causal, counts = batch["causal"], (batch["labels"] != IGNORED).sum(dim=1)
    assert (counts[causal] == 126).all()  # a special token and the first one have no label
    assert counts[~causal].float().mean() / 128 == pytest.approx(0.25, rel=0.03)
    assert torch.equal(batch["input_ids"][causal], ids[causal])


def test_flops_count_the_labels_of_both_phases():
    objective = composed("causal-first").objective
    collator = build_collator(objective, 1000, (0, 1, 2, 3, 4), 4)
    assert mean_capacity(collator, objective, 128) == 0.25 * 128 + 0.75 * 32
    plain = composed().objective
    assert mean_capacity(build_collator(plain, 1000, (0, 1, 2, 3, 4), 4), plain, 128) == 32


def test_counts_are_fixed_but_for_bernoulli_masking():
    for name in CHANGES:
        _, batch = masked(composed(name).objective)
        counts = (batch["labels"] != IGNORED).sum(dim=1).float()
        assert (counts.std() > 4.0) == (name == "bernoulli-masking")
        if CHANGES[name].get("unit") is None and name != "bernoulli-masking":
            assert counts.std() == 0.0


def test_all_mask_chooses_the_same_tokens():
    (_, plain), (_, all_mask) = (masked(composed(*recipes).objective) for recipes in ((), ("all-mask",)))
    assert torch.equal(plain["labels"], all_mask["labels"])
    assert torch.equal(plain["masked_positions"], all_mask["masked_positions"])


@pytest.mark.parametrize(
    "pair",
    [
        ("mask-15", "mask-30"),
        ("mask-30", "mask-schedule"),
        ("bernoulli-masking", "whole-word-masking"),
        ("span-masking", "bernoulli-masking"),
        ("whole-word-masking", "span-masking"),
        ("hybrid-causal", "funnel"),
        ("hybrid-causal", "causal-first"),
        ("causal-first", "funnel"),
        ("mask-40", "random-mask-rate"),
    ],
)
def test_recipes_that_say_different_things_exclude_each_other(pair: tuple[str, str]):
    with pytest.raises(ConfigError, match="exclude each other"):
        composed(*pair)


def test_other_recipes_combine():
    objective = composed("mask-schedule", "all-mask", "span-masking", "masked-next-token", "hybrid-causal").objective
    assert (objective.unit, objective.masking, objective.causal_fraction) == ("span", "all-mask", 0.0625)


@pytest.mark.parametrize(
    ("values", "model", "message"),
    [
        ({"mask_schedule": "cosine"}, {}, r"objective\.mask_schedule: cosine has no effect without"),
        ({"unit": "word", "positions": "bernoulli"}, {}, r"objective\.positions: .* excludes unit=word"),
        ({"causal_fraction": 0.1}, {}, r"objective\.causal_fraction: .*set objective\.shift=true"),
        ({"shift": True, "causal_fraction": 0.1}, {"stack": "funnel"}, r"objective\.causal_fraction: .*another stack"),
        ({"causal_fraction": 0.0, "final_causal_fraction": 0.1}, {}, r"objective\.causal_fraction: .*objective\.shift"),
        ({"causal_labels": "all"}, {}, r"objective\.causal_labels: all has no effect without causal rows"),
        ({"switch": 0.3}, {}, r"objective\.switch: has no effect without a setting"),
        ({"min_mlm_probability": 0.3}, {}, r"objective\.min_mlm_probability: must be <= 0\.25"),
        ({"min_mlm_probability": 0.1, "positions": "bernoulli"}, {}, r"objective\.positions: .*min_mlm_probability"),
        ({"shift": True}, {"architecture": "hf", "hf_name": "bert"}, r"objective\.shift: .*architecture=crambert"),
    ],
)
def test_conflicting_values_are_refused(values: dict[str, Any], model: dict[str, Any], message: str):
    model = {**model, "num_hidden_layers": 5}
    overrides = [f"objective={json.dumps(values)}", f"model={json.dumps(model)}"]
    with pytest.raises(ConfigError, match=message) as caught:
        compose_run("yamls/cram-cpu.yaml", overrides)
    assert "\n" not in str(caught.value)
