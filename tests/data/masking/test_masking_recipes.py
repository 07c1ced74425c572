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
from cram_composer.data.masking import IGNORED, build_collator
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
    "hybrid-causal": {"shift": True, "causal_fraction": 0.0625},
}


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


@pytest.mark.parametrize("name", CHANGES)
def test_a_recipe_changes_the_values_it_names_and_no_other(name: str):
    before, after = vars(composed()), vars(composed(name))
    assert vars(before["objective"]) | CHANGES[name] == vars(after["objective"])
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
        ({"shift": True}, {"architecture": "hf", "hf_name": "bert"}, r"objective\.shift: .*architecture=crambert"),
    ],
)
def test_conflicting_values_are_refused(values: dict[str, Any], model: dict[str, Any], message: str):
    model = {**model, "num_hidden_layers": 5}
    overrides = [f"objective={json.dumps(values)}", f"model={json.dumps(model)}"]
    with pytest.raises(ConfigError, match=message) as caught:
        compose_run("yamls/cram-cpu.yaml", overrides)
    assert "\n" not in str(caught.value)
