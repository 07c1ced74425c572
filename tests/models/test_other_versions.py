"""Exports written by one version of transformers load in another, with the same logits.

CRAM_OTHER_PYTHON names the Python of an environment with another version; `make test-oldest` sets it to this
environment's, and `CRAM_OTHER_PYTHON=.venv-oldest/bin/python make test` the other way round.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cram_composer.models.export import export_model, exported_form
from tests.conftest import REPOSITORY
from tests.models.test_native import BERT, CRAMMED, MODERN_BERT
from tests.models.tiny_models import VOCAB_SIZE, save_tokenizer, tiny_model
from tests.uses.exports import run_uses

OTHER = os.environ.get("CRAM_OTHER_PYTHON")
FORMS = {
    "crambert": {"positions": "rotary", "qk_norm": True},
    "bert": BERT,
    "modern-bert": MODERN_BERT,
    "crammed": CRAMMED,
}
# The uses that need no package besides transformers, and not the original model.
ALONE = [
    "other pipelines",
    "continued pretraining (Trainer)",
    "token classification (Trainer)",
    "question answering",
    "multiple choice",
]
NO_CHOICE = "transformers has no AutoModelForMultipleChoice of this kind"  # ModernBERT before transformers 4.57
pytestmark = pytest.mark.skipif(OTHER is None, reason="CRAM_OTHER_PYTHON names no Python with other versions")

LOAD = """
import sys, torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
folder, trust, inputs, outputs = sys.argv[1:]
model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=trust == "trust").eval()
tokens = AutoTokenizer.from_pretrained(folder)("some [MASK] words")["input_ids"]
given = torch.load(inputs)
with torch.inference_mode():
    filled = pipeline("fill-mask", folder, trust_remote_code=trust == "trust")("some [MASK] words")
    logits = model(**given).logits
    torch.save({"filled": [guess["token"] for guess in filled], "logits": logits, "tokens": tokens}, outputs)
"""
EXPORT = "from tests.models.test_other_versions import write; import sys; write(sys.argv[1], sys.argv[2])"


def write(form: str, folder: str) -> None:
    """Export a small model under the running version."""
    torch.manual_seed(0)
    target = Path(folder)
    tokenizer = save_tokenizer(target.with_name(f"{target.name}-tokenizer"))
    export_model(exported_form(tiny_model(**FORMS[form])), tokenizer, target, "card")


def _run(python: str, script: str, *arguments: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([python, "-c", script, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("written_here", [True, False], ids=["written-here", "written-there"])
@pytest.mark.parametrize("form", FORMS)
def test_export_of_one_version_loads_in_the_other(form: str, written_here: bool, tmp_path: Path) -> None:
    assert OTHER is not None
    folder, inputs = tmp_path / "export-v1.5", tmp_path / "inputs.pt"
    if written_here:
        write(form, str(folder))
    else:
        _run(OTHER, EXPORT, form, str(folder))
    ids = torch.randint(VOCAB_SIZE, (2, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 10:] = 0
    torch.save({"input_ids": ids, "attention_mask": mask}, inputs)
    trust = "trust" if form == "crambert" else "no"
    found = []
    for python in (sys.executable, OTHER):
        _run(python, LOAD, str(folder), trust, str(inputs), str(tmp_path / "out.pt"))
        found.append(torch.load(tmp_path / "out.pt"))
    assert found[0]["tokens"] == found[1]["tokens"] and found[0]["filled"] == found[1]["filled"]
    difference = (found[0]["logits"] - found[1]["logits"])[mask.bool()].abs().max()
    assert difference < 1e-5
    uses = run_uses(folder, tmp_path, ALONE, OTHER if written_here else sys.executable)["uses"]
    failed = {use: found for use, found in uses.items() if isinstance(found, str) and found != NO_CHOICE}
    differ = {use: found for use, found in uses.items() if isinstance(found, float) and found > 1e-5}
    assert not failed and not differ
