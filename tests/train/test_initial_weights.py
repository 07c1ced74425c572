"""A run that starts from the weights of a run, an export or a Hugging Face model."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from cram_composer.config.schema.model import ModelConfig
from cram_composer.data.manifest import load_manifest
from cram_composer.errors import CramError
from cram_composer.models.factory import build_model
from cram_composer.models.native import from_native, to_native
from cram_composer.train.initial_weights import load_initial_weights
from tests.tiny_runs import TinyRuns, losses, record, saved

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {
    "norm": "layernorm", "norm_position": "post", "norm_bias": True, "ffn": "gelu", "positions": "learned",
    "attention_bias": True, "mlp_bias": True, "head_bias": True, "head_transform": True, "embedding_norm": True,
}  # fmt: skip
MODERN_BERT = {
    "norm": "layernorm", "norm_position": "pre", "first_norm": False, "final_norm": True, "ffn": "geglu",
    "positions": "rotary", "head_transform": True, "embedding_norm": True,
}  # fmt: skip
TOKENS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def network(values: dict[str, Any], seed: int = 0, vocab_size: int = 200) -> Any:
    torch.manual_seed(seed)
    model = build_model(ModelConfig.model_validate({**SIZES, **values}), vocab_size, TOKENS)
    for parameter in model.parameters():  # norms and biases start as constants
        torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("values", [BERT, MODERN_BERT], ids=["bert", "modernbert"])
def test_conversion_from_a_class_of_transformers_inverts_that_to_it(values: dict):
    trained, fresh = network(values), network(values, seed=1)
    native = to_native(trained)
    state = from_native(native, fresh, "here")
    assert state.keys() == trained.state_dict().keys()
    for name, tensor in trained.state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_the_first_token_type_of_bert_is_part_of_the_positions():
    config = BertConfig(vocab_size=200, max_position_embeddings=128, layer_norm_eps=1e-12, **SIZES)
    native = BertForMaskedLM(config).eval()
    torch.nn.init.normal_(native.bert.embeddings.token_type_embeddings.weight)
    ours = network({**BERT, "max_position_embeddings": 128}).eval()
    ours.load_state_dict(from_native(native, ours, "here"))
    tokens = torch.randint(200, (2, 16))
    torch.testing.assert_close(ours(input_ids=tokens).logits, native(input_ids=tokens).logits, atol=1e-4, rtol=1e-4)


def test_a_model_that_is_no_cram_bert_names_the_settings():
    native = BertForMaskedLM(BertConfig(vocab_size=200, **SIZES))
    with pytest.raises(CramError, match="is a BertForMaskedLM, which CramBERT equals with .*model.positions=.learned"):
        from_native(native, network(MODERN_BERT), "here")


@pytest.fixture(scope="module")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRuns]:
    """Return a trainer on a data set with a tokenizer."""
    yield TinyRuns(tiny_data, tmp_path_factory.mktemp("initial"))


@pytest.fixture(scope="module")
def first(runs: TinyRuns) -> Path:
    """Train a run with an export."""
    return runs("first", "export={enabled: true, sentences: []}")


@pytest.mark.parametrize("part", ["", "export"])
def test_a_run_starts_from_the_weights_of_another(runs: TinyRuns, first: Path, part: str):
    run = runs(f"second{part}", f"init_from={first / part}", "optimizer.lr=0.0", "checkpoint.keep=1")
    trained, started = saved(first)["model"], saved(run)["model"]
    assert all(torch.equal(trained[name], started[name]) for name in trained)
    assert losses(run)[0] < losses(first)[0]
    found = record(run)
    assert found["init_from"]["path"] == str(first / part)
    if not part:
        assert found["init_from"]["steps"] == 10 and found["init_from"]["config_hash"] == record(first)["config_hash"]


def test_a_resumed_run_does_not_need_the_folder(runs: TinyRuns, first: Path, tmp_path: Path):
    copied = tmp_path / "copied"
    shutil.copytree(first, copied)
    whole = runs("whole", f"init_from={copied}")
    shutil.rmtree(copied)
    killed = runs.resume(whole, 5, f"init_from={copied}")
    assert losses(killed) == losses(whole)
    assert record(killed)["init_from"] == record(whole)["init_from"]


def prepared(data: Path) -> Any:
    return SimpleNamespace(manifest=load_manifest(data), tokenizer=data / "tokenizer")


def test_what_does_not_fit_is_refused_in_one_line(first: Path, tiny_data: Path, tmp_path: Path):
    settings = record(first)["config"]["model"]
    data = prepared(tiny_data)
    size = data.manifest["vocab_size"]

    def error_of(source: Path, **changes: Any) -> str:
        model = build_model(ModelConfig.model_validate(settings | changes), size, data.manifest["special_tokens"])
        with pytest.raises(CramError) as caught:
            load_initial_weights(model, str(source), data)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "neither a run folder nor a model" in error_of(tmp_path)
    assert "weights differ in shape" in error_of(first, hidden_size=64)
    assert "computes other outputs" in error_of(first, num_attention_heads=4)
    broken = shutil.copytree(first / "export", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    spoilt = {name: weight * math.nan for name, weight in weights.items()}
    save_file(spoilt, broken / "model.safetensors", {"format": "pt"})
    assert "computes other outputs" in error_of(broken)
    other = tmp_path / "other"
    shutil.copytree(first / "export", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] = {
        token if token in special else f"{token}~": number for token, number in tokenizer["model"]["vocab"].items()
    }
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "has no token in common" in error_of(other)


def test_tokens_of_another_tokenizer_are_matched_by_text(first: Path, tiny_data: Path, tmp_path: Path) -> None:
    data = prepared(tiny_data)
    other = tmp_path / "other"
    shutil.copytree(first / "export", other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    *_, swapped, with_swapped, gone = vocabulary
    vocabulary[swapped], vocabulary[with_swapped] = vocabulary[with_swapped], vocabulary[swapped]
    vocabulary[f"{gone}~"] = vocabulary.pop(gone)
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = ModelConfig.model_validate(record(first)["config"]["model"])
    model = build_model(settings, data.manifest["vocab_size"], data.manifest["special_tokens"])
    drawn = model.get_input_embeddings().weight.detach().clone()
    found = load_initial_weights(model, str(other), data)
    size = data.manifest["vocab_size"]
    assert found["tokens_matched"] == size - 1 and found["tokens_in_vocabulary"] == size
    rows, trained = (
        model.get_input_embeddings().weight,
        saved(first)["model"]["model.encoder.embeddings.word_embeddings.weight"],
    )
    a, b, c = (tokenizer_id(first, token) for token in (swapped, with_swapped, gone))
    assert torch.equal(rows[a], trained[b]) and torch.equal(rows[b], trained[a])
    assert not torch.equal(rows[c], trained[c]) and not torch.equal(rows[c], drawn[c])
    assert torch.equal(rows[:a], trained[:a])


def tokenizer_id(run: Path, token: str) -> int:
    return AutoTokenizer.from_pretrained(run / "tokenizer").get_vocab()[token]
