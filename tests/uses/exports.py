"""Small exports of both kinds, and the uses that `uses.py` makes of them in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from cram_composer.models.export import export_model, exported_form
from tests.models.tiny_models import VOCAB_SIZE, save_tokenizer, tiny_model

FORMS: dict[str, dict[str, Any]] = {
    "native": {"positions": "rotary", "first_norm": False, "rope_theta": 10000.0},
    "CramBERT": {"positions": "rotary", "qk_norm": True},
}
SENTENCE = "the river [MASK] into the sea."


def write_export(form: str, folder: Path) -> Path:
    """Export a model with random weights, and save its own logits in FOLDER/reference.pt; return the export."""
    model = tiny_model(vocab_size=VOCAB_SIZE, max_position_embeddings=64, **FORMS[form]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tokenizer_dir = save_tokenizer(folder / "tokenizer")
    export = export_model(exported_form(model), tokenizer_dir, folder / "export", "card\n")
    assert bool(list(export.glob("*.py"))) == (form == "CramBERT")
    tokenizer = AutoTokenizer.from_pretrained(export, trust_remote_code=True)
    inputs = {"input_ids": torch.randint(VOCAB_SIZE, (2, 20)), "attention_mask": torch.ones(2, 20, dtype=torch.int64)}
    inputs["attention_mask"][1, 9:] = 0
    sentence = tokenizer(SENTENCE, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        filled = model(sentence).logits[0, sentence[0].tolist().index(tokenizer.mask_token_id)]
        logits = model(**inputs).logits[inputs["attention_mask"].bool()]
    reference = {"inputs": inputs, "logits": logits, "sentence": SENTENCE, "filled": filled}
    torch.save(reference, folder / "reference.pt")
    return export


def run_uses(
    export: Path, home: Path, uses: list[str] | None = None, python: str = sys.executable, packages: str = ""
) -> dict[str, Any]:
    """Run uses of an export in a process without cram_composer; return what `uses.py` prints.

    Args:
        export: the result of `write_export`.
        home: folder for the caches of the process.
        uses: keys of USES; None for all.
        python: the process's Python.
        packages: folder of further packages.
    """
    environment = os.environ | {
        "PYTHONPATH": packages,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    script = Path(__file__).with_name("uses.py")
    done = subprocess.run(
        [python, str(script), str(export), str(export.with_name("reference.pt")), *(uses or [])],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
