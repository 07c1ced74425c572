"""Classifiers with a pooling of the protocol, and rates that fall with depth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import BertConfig, BertModel

from cram_composer.config.schema.evaluation import ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning import jobs
from cram_composer.evaluation.fine_tuning.encode import collate, encode
from cram_composer.evaluation.fine_tuning.fine_tune import _build_optimizer, fine_tune
from cram_composer.evaluation.fine_tuning.heads import TextClassifier
from cram_composer.evaluation.fine_tuning.results import settings_hash
from cram_composer.evaluation.model_source import find_model
from cram_composer.evaluation.tasks.examples import Split
from cram_composer.evaluation.tasks.glue import GLUE
from cram_composer.evaluation.tasks.task import Example
from tests.models.tiny_models import save_tokenizer, tiny_model

POOLINGS = ("first", "mean", "attention", "pair")
WORDS = ("the", "river", "flows", "into", "sea", "a", "king", "was", "born")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an export with a tokenizer."""
    made = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(made)
    return save_tokenizer(made)


def split(*texts: tuple[str, ...], labels: list | None = None) -> Split:
    given = labels or [0] * len(texts)
    examples = [Example(text, label) for text, label in zip(texts, given, strict=True)]
    return Split("train", examples, len(examples), 0)


PAIRS = split(("the river flows", "a king"), ("the sea", "a king was born into the river"))


def test_sides_tell_the_texts_of_a_pair(folder: Path) -> None:
    rows = encode(PAIRS, find_model(str(folder)).load_tokenizer(), 24, token_types=False, sides=True)
    batch = collate(rows, torch.tensor([0, 1]), pad=0)
    assert batch["sides"].tolist() == [
        [0, 1, 1, 1, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 2, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0, 0],
    ]
    slow = find_model(str(folder)).load_tokenizer()
    type(slow).is_fast, fast = property(lambda self: False), type(slow).is_fast
    try:
        with pytest.raises(CramError, match=r"^pooling=pair needs a fast tokenizer"):
            encode(PAIRS, slow, 24, token_types=False, sides=True)
    finally:
        type(slow).is_fast = fast


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooled_features_are_those_of_a_plain_loop(pooling: str, folder: Path) -> None:
    source = find_model(str(folder))
    batch = collate(encode(PAIRS, source.load_tokenizer(), 24, False, sides=True), torch.tensor([0, 1]), pad=0)
    model = TextClassifier(source.load_encoder(0.0), 3, 0.0, pooling, pairs=True).eval()
    with torch.no_grad():
        hidden = model.encoder(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        expected = []
        for row, mask, sides in zip(hidden, batch["attention_mask"], batch["sides"], strict=True):
            seen = row[mask.bool()]
            u, v = row[sides == 1].mean(0), row[sides == 2].mean(0)
            weights = model.scores(seen).softmax(0) if pooling == "attention" else None
            expected.append(
                {
                    "first": lambda seen=seen: seen[0],
                    "mean": lambda seen=seen: seen.mean(0),
                    "attention": lambda seen=seen, weights=weights: (weights * seen).sum(0),
                    "pair": lambda u=u, v=v: torch.cat((u, v, (u - v).abs(), u * v)),
                }[pooling]()
            )
        logits = model.out(torch.tanh(model.dense(torch.stack(expected))))
        batch.pop("labels")
        torch.testing.assert_close(model(**batch).logits, logits)
        alone = TextClassifier(model.encoder, 3, 0.0, pooling, pairs=False).eval()
        assert alone.dense.in_features == 16
        one = encode(split(("the river flows",)), source.load_tokenizer(), 24, False, sides=True)
        inputs = collate(one, torch.tensor([0]), pad=0)
        inputs.pop("labels")
        assert alone(**inputs).logits.shape == (1, 3)


def test_a_pair_of_which_nothing_is_left_is_finite(folder: Path) -> None:
    source = find_model(str(folder))
    batch = collate(
        encode(split(("", "a king")), source.load_tokenizer(), 24, False, sides=True), torch.tensor([0]), pad=0
    )
    model = TextClassifier(source.load_encoder(0.0), 2, 0.0, "pair", pairs=True)
    assert model(**batch).loss.isfinite()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_equality_of_two_texts_is_learnt_best_from_both(pooling: str, folder: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    texts, labels = [], []
    for number in range(240):
        first, second = (WORDS[int(torch.randint(9, (1,), generator=generator))] for _ in range(2))
        texts.append((first, first if number % 2 else second))
        labels.append(int(texts[-1][0] == texts[-1][1]))
    source, task = find_model(str(folder)), GLUE["rte"]
    settings = ProtocolConfig(epochs=20, batch_size=16, lr=3e-3, dropout=0.0, pooling=pooling)
    tokenizer = source.load_tokenizer()
    rows = {
        "train": encode(split(*texts[:200], labels=labels[:200]), tokenizer, 24, False, sides=True),
        "validation": encode(split(*texts[200:], labels=labels[200:]), tokenizer, 24, False, sides=True),
    }
    torch.manual_seed(1)
    model = jobs._load_model(source, task, settings, pairs=True)
    assert isinstance(model, TextClassifier)
    outcome = fine_tune(model, task, rows, settings, 1, torch.device("cpu"), "fp32")
    if pooling == "pair":
        assert outcome.scores["validation"]["accuracy"] > 95.0
    assert outcome.train_loss < 0.69


def test_only_pair_asks_for_sides_and_null_is_the_models_own_head(folder: Path) -> None:
    source = find_model(str(folder))
    made = {
        pooling: jobs.Job(source, GLUE["rte"], (), 1, ProtocolConfig(pooling=pooling), None, "fp32", {})
        for pooling in (None, *POOLINGS)
    }
    assert [pooling for pooling, job in made.items() if jobs._reads_sides(job)] == ["pair"]
    tagging = replace(made["pair"], task=replace(GLUE["rte"], head="words"))
    assert not jobs._reads_sides(tagging)
    own = jobs._load_model(source, GLUE["rte"], ProtocolConfig(), pairs=True)
    assert type(own).__name__ == "CramBertForSequenceClassification"


def test_models_with_token_types_still_get_them() -> None:
    sizes = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertModel(BertConfig(**sizes, intermediate_size=32))
    model = TextClassifier(encoder, 2, 0.0, "pair", pairs=True).eval()
    ids, sides = torch.randint(5, 16, (2, 6)), torch.tensor([[0, 1, 1, 0, 2, 0]]).expand(2, -1)
    types = (sides == 2).long()
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "sides": sides}
    assert not torch.equal(model(**given).logits, model(**given, token_type_ids=types).logits)


def test_rates_fall_with_depth(folder: Path) -> None:
    model = TextClassifier(find_model(str(folder)).load_encoder(0.0), 2, 0.0, "mean", pairs=False)
    settings = ProtocolConfig(lr=1.0, layer_lr_decay=0.5, weight_decay=0.1)
    groups = _build_optimizer(model, settings).param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    encoder = model.encoder
    assert rates[id(model.out.weight)] == (1.0, 0.1) and rates[id(model.out.bias)] == (1.0, 0.0)
    assert rates[id(encoder.layers[1].attention.qkv.weight)] == (0.5, 0.1)
    assert rates[id(encoder.layers[0].attention.qkv.weight)] == (0.25, 0.1)
    assert rates[id(encoder.embeddings.word_embeddings.weight)] == (0.125, 0.1)
    plain = _build_optimizer(model, ProtocolConfig(lr=1.0)).param_groups
    assert {group["lr"] for group in plain} == {1.0}


def test_earlier_results_keep_their_key_and_a_pooling_changes_it() -> None:
    keys = [settings_hash(ProtocolConfig(pooling=pooling), {}, "fp32") for pooling in (None, *POOLINGS)]
    assert len(set(keys)) == 5
    assert keys[0] == "2e62e3835d66ad92"  # as before there were poolings


def test_a_model_of_mnli_has_no_other_head() -> None:
    with pytest.raises(ValidationError, match="mnli_start: hands on the model's own head"):
        ProtocolConfig(mnli_start=True, pooling="mean")
