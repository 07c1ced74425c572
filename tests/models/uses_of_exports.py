"""Uses of an export with transformers alone; this file runs under other versions too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.pipelines import PIPELINE_REGISTRY

TEXTS = ["the river flows into the sea.", "a king was born", "the king flows", "a sea"]


def use(folder: Path, trust: bool, workspace: Path) -> None:
    """Use an export in every pipeline for encoders, and train it further and on a task."""
    run_pipelines(folder, trust)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    rows: list[dict[str, Any]] = [dict(tokenizer(text)) for text in TEXTS]
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.5)
    train(AutoModelForMaskedLM, folder, trust, rows, collator, workspace / "v1.5-continued")
    labelled = [{**row, "labels": [index % 2 for index in range(len(row["input_ids"]))]} for row in rows]
    tagging = DataCollatorForTokenClassification(tokenizer)
    # from what was trained further, so that its folder is complete
    train(AutoModelForTokenClassification, workspace / "v1.5-continued", trust, labelled, tagging, workspace / "tagger")
    chooser = AutoModelForMultipleChoice.from_pretrained(folder, trust_remote_code=trust) if trust else None
    if chooser is not None:  # ModernBERT has none in transformers 4.53
        pair = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
        choices = {name: tensor.unsqueeze(0) for name, tensor in pair.items()}
        assert chooser(**choices, labels=torch.tensor([1])).logits.shape == (1, 2)


def run_pipelines(folder: Path, trust: bool) -> None:
    """Load the folder by every pipeline for encoders that the version has."""

    def load(task: str) -> Any:
        return pipeline(task, model=str(folder), trust_remote_code=trust, device="cpu")

    assert len(load("fill-mask")("the [MASK] flows")) == 5
    assert [0 < answer["score"] <= 1 for answer in load("text-classification")(TEXTS)] == [True] * 4
    words = [token["word"] for token in load("token-classification")(TEXTS[1])]
    assert words == TEXTS[1].split()
    features = load("feature-extraction")(TEXTS[1], return_tensors=True)
    assert features.shape[:2] == (1, 6) and features.isfinite().all()
    if "question-answering" in PIPELINE_REGISTRY.get_supported_tasks():
        answer = load("question-answering")(question="a king", context=TEXTS[0])
        assert answer["answer"] in TEXTS[0]
    else:  # transformers 5 has no such pipeline
        model = AutoModelForQuestionAnswering.from_pretrained(folder, trust_remote_code=trust)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        pair = tokenizer("a king", TEXTS[0], return_tensors="pt")
        assert model(**pair).end_logits.shape == pair["input_ids"].shape


def train(auto_class: Any, folder: Path, trust: bool, rows: list, collator: Any, destination: Path) -> None:
    """Train two steps with transformers' Trainer, save, and load what was saved."""
    torch.manual_seed(0)
    model = auto_class.from_pretrained(folder, trust_remote_code=trust)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        str(destination / "checkpoints"),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.01,
        gradient_checkpointing=True,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, processing_class=collator.tokenizer)
    assert trainer.train().training_loss > 0
    for name, parameter in model.named_parameters():
        # ModernBERT's first layer adds nothing where CramBERT has a norm, and stays at zero
        if not name.startswith("model.layers.0."):
            assert not torch.equal(parameter, before[name]), name
    trainer.save_model(str(destination))
    loaded = auto_class.from_pretrained(destination, trust_remote_code=trust).eval()
    given = collator.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**given).logits, model.eval()(**given).logits)
