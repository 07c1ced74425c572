from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    pipeline,
)

from cram_composer.errors import CramError
from cram_composer.models.export import export_model, exported_form, fill_masks, verify_export
from cram_composer.models.factory import longest_input
from tests.models.test_native import CRAMMED
from tests.models.tiny_models import VOCAB_SIZE, save_tokenizer, tiny_model
from tests.uses.uses import (
    Absent,
    Export,
    answer_questions,
    choose,
    label_words_with_trainer,
    other_pipelines,
    pretrain_on,
)

# A user of the export: torch and transformers in another directory, without cram_composer.
READER = """
import sys
sys.modules["cram_composer"] = None  # importing it raises ImportError
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
folder, inputs = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()
given = torch.load(inputs)
with torch.inference_mode():
    difference = (model(**given["inputs"]).logits - given["logits"]).abs().max().item()
assert difference <= 1e-5, difference
tokenizer = AutoTokenizer.from_pretrained(folder)
answers = pipeline("fill-mask", model=model, tokenizer=tokenizer)("the river [MASK] into the sea.")
assert len(answers) == 5 and all(0 < answer["score"] < 1 for answer in answers), answers
encoder = AutoModel.from_pretrained(folder, trust_remote_code=True)
assert torch.equal(encoder.get_input_embeddings().weight, model.get_input_embeddings().weight)
classifier = AutoModelForSequenceClassification.from_pretrained(
    folder, trust_remote_code=True, num_labels=3, hidden_dropout_prob=0.1
)
assert torch.equal(classifier.get_input_embeddings().weight, model.get_input_embeddings().weight)
pair = tokenizer(["the river"], ["a king"], return_tensors="pt")
assert classifier(**pair, labels=torch.tensor([2])).loss.isfinite()
classifier.save_pretrained(folder + "-tuned")  # and what is made of it carries its code as well
again = AutoModelForSequenceClassification.from_pretrained(folder + "-tuned", trust_remote_code=True)
assert torch.equal(again.classifier.out.weight, classifier.classifier.out.weight)
print("ok")
"""


@pytest.fixture
def tokenizer_dir(tmp_path) -> Path:
    return save_tokenizer(tmp_path / "tokenizer")


def trained_model() -> PreTrainedModel:
    """Build a tiny model that differs from its initial weights, including the tied matrix."""
    model = tiny_model(vocab_size=VOCAB_SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def test_an_export_loads_without_the_package(tmp_path, tokenizer_dir):
    model = trained_model().eval()
    folder = export_model(exported_form(model), tokenizer_dir, tmp_path / "export", "# a card\n")
    assert (folder / "README.md").read_text() == "# a card\n"
    assert not list(tmp_path.glob(".export*")), "temporary folders remain"
    inputs = {"input_ids": torch.randint(VOCAB_SIZE, (2, 24)), "attention_mask": torch.ones(2, 24, dtype=torch.int64)}
    inputs["attention_mask"][1, 9:] = 0
    with torch.inference_mode():
        torch.save({"inputs": inputs, "logits": model(**inputs).logits}, tmp_path / "inputs.pt")
    child = subprocess.run(
        [sys.executable, "-I", "-c", READER, str(folder), str(tmp_path / "inputs.pt")],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.strip().endswith("ok")


def test_weights_are_fp32_and_tied_ones_stored_once(tmp_path, tokenizer_dir):
    folder = export_model(exported_form(trained_model().bfloat16()), tokenizer_dir, tmp_path / "export", "")
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert [name for name in weights if "decoder" in name or "word_embeddings" in name] == [
        "encoder.embeddings.word_embeddings.weight"
    ]
    config = json.loads((folder / "config.json").read_text())
    tasks = ("MaskedLM", "MultipleChoice", "QuestionAnswering", "SequenceClassification", "TokenClassification")
    assert set(config["auto_map"]) == {"AutoConfig", "AutoModel", *(f"AutoModelFor{task}" for task in tasks)}
    (tmp_path / "any").touch()
    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "any").stat().st_mode}


@pytest.mark.parametrize("changes", [{"qk_norm": True}, CRAMMED], ids=["crambert", "modern-bert"])
def test_pipelines_and_the_trainer_take_an_export(changes, tmp_path, tokenizer_dir):
    model = exported_form(tiny_model(vocab_size=VOCAB_SIZE, **changes))
    folder = export_model(model, tokenizer_dir, tmp_path / "export-v1.5", "")
    export = Export(str(folder))
    assert bool(export.trust) == ("qk_norm" in changes)
    for use in (other_pipelines, pretrain_on, label_words_with_trainer, answer_questions):
        assert use(export) < 1e-5
    with suppress(Absent):  # transformers 4.53 has no ModernBertForMultipleChoice
        assert choose(export) < 1e-5


def test_the_weights_file_names_run_and_configuration(tmp_path, tokenizer_dir):
    identity = {"run_name": "mine", "config_hash": "e5cd6ef7"}
    folder = export_model(exported_form(trained_model()), tokenizer_dir, tmp_path / "export", "", identity)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", **identity}


def test_exporting_draws_no_random_numbers_and_verification_rejects_another_model(tmp_path, tokenizer_dir):
    model, other = trained_model(), tiny_model(vocab_size=VOCAB_SIZE)
    before = torch.get_rng_state()
    folder = export_model(exported_form(model), tokenizer_dir, tmp_path / "export", "")
    assert torch.equal(torch.get_rng_state(), before)
    assert verify_export(folder, model) == 0.0
    with pytest.raises(CramError, match="outputs differ"):
        verify_export(folder, other)


def test_verification_rejects_a_damaged_export(tmp_path, tokenizer_dir):
    model = trained_model()
    folder = export_model(exported_form(model), tokenizer_dir, tmp_path / "export", "")
    assert verify_export(folder, model) <= 1e-5
    weights = load_file(folder / "model.safetensors")
    weights["encoder.final_norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CramError, match="outputs differ"):
        verify_export(folder, model)


def test_an_export_replaces_the_previous_one(tmp_path, tokenizer_dir):
    model = trained_model()
    destination = tmp_path / "export"
    export_model(exported_form(model), tokenizer_dir, destination, "first")
    (destination / "stale.txt").write_text("left by an older version")
    export_model(exported_form(model), tokenizer_dir, destination, "second")
    assert (destination / "README.md").read_text() == "second"
    assert not (destination / "stale.txt").exists()


@pytest.mark.parametrize("types", [1, 2])
def test_a_native_architecture_needs_no_code(types, tmp_path, tokenizer_dir):
    settings = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]  # those of BERT
    (tokenizer_dir / "tokenizer_config.json").write_text(json.dumps(settings))
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model("bert", intermediate_size=32, type_vocab_size=types, **sizes)
    )
    folder = export_model(exported_form(model), tokenizer_dir, tmp_path / "export", "")
    assert not list(folder.glob("*.py"))
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert verify_export(folder, model) <= 1e-5
    loaded = AutoModelForMaskedLM.from_pretrained(folder)
    assert loaded.config.model_type == "bert"
    pair = AutoTokenizer.from_pretrained(folder)("the river", "a king", return_tensors="pt")
    assert ("token_type_ids" in pair) == (types > 1)
    assert loaded(**pair).logits.isfinite().all()


def test_fill_masks(tokenizer_dir):
    model, tokenizer = trained_model(), AutoTokenizer.from_pretrained(tokenizer_dir)
    word = tokenizer.convert_tokens_to_ids("sea")
    with torch.no_grad():  # predict "sea" everywhere: the last norm's output is its embedding
        model.encoder.final_norm.weight.zero_()
        model.encoder.final_norm.bias.copy_(model.get_input_embeddings().weight[word])
    model.train()
    answers = fill_masks(model, tokenizer, ["the river flows into the [MASK].", "a [MASK] was born."], k=2)
    assert [len(answer) for answer in answers] == [2, 2]
    assert [answer[0][0] for answer in answers] == ["sea", "sea"]
    assert answers[0][0][1] > answers[0][1][1]
    assert model.training
    with pytest.raises(CramError, match=r"no \[MASK\]"):
        fill_masks(model, tokenizer, ["a king was born."])


@pytest.mark.parametrize("positions", [16, 100])
def test_the_tokenizer_of_an_export_cuts_where_the_models_positions_end(positions, tmp_path, tokenizer_dir):
    model = tiny_model(vocab_size=VOCAB_SIZE, max_position_embeddings=positions)
    folder = export_model(exported_form(model), tokenizer_dir, tmp_path / "export", "")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == positions
    text = "the river " * positions
    inputs = tokenizer(text, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == positions
    loaded = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    assert loaded(**inputs).logits.shape == (1, positions, VOCAB_SIZE)
    assert json.loads((folder / "config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    filled = pipeline("fill-mask", model=str(folder), trust_remote_code=True)("the [MASK] flows")
    assert len(filled) == 5


def test_positions_behind_the_padding_id_are_not_counted():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = RobertaForMaskedLM(RobertaConfig(**sizes, vocab_size=40, max_position_embeddings=34, pad_token_id=1))
    assert longest_input(model) == 32
    assert model(torch.randint(5, 40, (1, 32))).logits.shape == (1, 32, 40)
