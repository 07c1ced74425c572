"""Rows of whole documents and padding, from the text to the exported model."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer

from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, PackingConfig, TokenizerConfig
from cram_composer.data.pipeline.build import build
from tests.conftest import environment, train_command, write_text

HF = ["model.architecture=hf", "model.hf_name=bert"]
CRAMBERT = [
    "recipes=[document-masking,seq-length-warmup]",
    "algorithms.seq_length_warmup.min_seq_length=64",
    "algorithms.seq_length_warmup.duration=0.6",
]


@pytest.fixture(scope="module")
def padded_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build rows of 256 tokens with one or two documents each, with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("padded")
    write_text(folder / "text.txt", documents=400)
    config = DataBuildConfig(
        name="padded",
        output=str(folder / "data"),
        sources=[FilesConfig(paths=[str(folder / "text.txt")], document="line")],
        tokenizer=TokenizerConfig(kind="byte-bpe", vocab_size=400),
        packing=PackingConfig(kind="best-fit", sequence_length=256, block_rows=16),
        validation_fraction=0.15,
    )
    return build(config, progress=False)


@pytest.mark.parametrize("model", [CRAMBERT, HF], ids=["crambert", "hf"])
def test_a_run_on_padded_rows_ends_with_a_model_that_loads(padded_data: Path, tmp_path: Path, model: list[str]):
    settings = ["budget.steps=4", "run_name=r", "eval.rows=16", "eval.final_rows=16", "export.enabled=true", *model]
    command = train_command(padded_data, tmp_path, settings)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (tmp_path / "r" / "trace.jsonl").read_text().splitlines()]
    assert len(steps) == 4
    assert all(math.isfinite(step["loss"]) for step in steps)
    assert json.loads((tmp_path / "r" / "record.json").read_text())["status"] == "finished"
    export = tmp_path / "r" / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    loaded = AutoModelForMaskedLM.from_pretrained(export, trust_remote_code=True)
    inputs = tokenizer(["Ba [MASK] lo.", "Mi"], padding=True, return_tensors="pt")
    logits = loaded(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    assert np.isfinite(logits.detach().numpy()).all()
