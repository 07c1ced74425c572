from __future__ import annotations

import copy

import yaml

from cram_composer.models.card import model_card

RECORD = {
    "run_name": "tiny-run",
    "recipes": ["crammed-bert", "ema"],
    "config": {
        "seed": 17,
        "model": {"architecture": "crambert", "hidden_size": 64, "hf_name": None},
        "objective": {"mlm_probability": 0.25},
        "optimizer": {"lr": 0.001, "betas": [0.9, 0.98]},
        "schedule": {"name": "triangle"},
        "train": {"batch_size": 256},
        "algorithms": {"ema": {"half_life": 0.01}, "fused_layernorm": None},
    },
    "environment": {
        "git_revision": "abc123",
        "python": "3.11.7",
        "platform": "Linux",
        "cpu": "Some | CPU",
        "gpus": [],
        "libraries": {"torch": "2.7.0", "transformers": "4.53.3"},
    },
    "world_size": 2,
    "parameters": 1234567,
    "kernels": {"attention": "sdpa", "compile": "regional"},
    "budget": {"mode": "wall", "seconds": 600.0},
    "steps": 321,
    "tokens": 10518528,
    "ledger": {
        "inside": {"compile": 41.5, "train": 550.25},
        "inside_total": 591.75,
        "wall_seconds": 600.0,
        "outside": {"setup": 12.0, "export": None},
    },
    "energy": None,
    "metrics": {"validation_loss": 5.4321, "validation_accuracy": None},
}
MANIFEST = {
    "name": "starter",
    "sequence_length": 128,
    "vocab_size": 8192,
    "tokenizer_sha256": "f00d",
    "splits": {"train": {"rows": 1000, "tokens": 128000}},
    "sources": [{"name": "sotu", "kind": "starter", "documents": 230, "characters": 99, "licence": "public domain"}],
    "unigram_validation_nats": 6.789,
}


def test_the_card_contains_the_facts_of_the_record():
    card = model_card(RECORD, MANIFEST, custom_code=True)
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "fill-mask"
    for fact in (
        "# tiny-run",
        "1,234,567 parameters",
        "10,518,528 tokens in 321 steps",
        "budget of 600 s",
        "| validation loss | 5.4321 |",
        "| unigram model on the validation split, nats per token | 6.789 |",
        "| recipes | crammed-bert, ema |",
        "| optimizer.betas | [0.9, 0.98] |",
        "| sotu | starter | 230 | 99 | public domain |",
        "| train, tokens | 128,000 |",
        "| train (in the budget) | 550.25 |",
        "| setup (outside the budget) | 12 |",
        "| cpu | Some \\| CPU |",
        "torch 2.7.0, transformers 4.53.3",
    ):
        assert fact in card
    assert "trust_remote_code=True" in card
    assert "None" not in card, "absent facts are left out"


def test_a_native_architecture_is_loaded_without_its_code():
    record = copy.deepcopy(RECORD)
    record["energy"] = {"joules": 1234.5, "source": "nvml"}
    card = model_card(record, MANIFEST, custom_code=False)
    assert "trust_remote_code" not in card
    assert "custom_code" not in card
    assert "| energy, joules | 1234.5 |" in card


def test_a_model_that_started_from_other_weights_says_so():
    assert "trained from scratch with" in model_card(RECORD, MANIFEST, custom_code=False)
    card = model_card(RECORD | {"init_from": {"path": "/runs/earlier"}}, MANIFEST, custom_code=False)
    assert "trained from the weights of earlier, not from scratch, with" in card
