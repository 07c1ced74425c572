"""Uses of exports by transformers, sentence-transformers, onnxruntime and torch.compile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docs.markdown import page_name, python_blocks
from tests.uses.exports import FORMS, run_uses, write_export
from tests.uses.table import PATH, table
from tests.uses.uses import USES

PAGE = REPOSITORY / "docs" / "how-to" / "use-your-model.md"
_NO_OPTIMUM = "ONNX (optimum)"  # supports no transformers 5
_ALL_PACKAGES = all(find_spec(name) for name in ("sentence_transformers", "onnxruntime", "onnxscript"))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_an_export_works_with_every_tool(form: str, tmp_path: Path) -> None:
    export = write_export(form, tmp_path)
    found = run_uses(export, tmp_path, [use for use in USES if use != _NO_OPTIMUM])["uses"]
    missing = {use for use, outcome in found.items() if str(outcome).startswith("not tested")}
    assert not (missing and _ALL_PACKAGES)
    failed = {use: v for use, v in found.items() if use not in missing and not (isinstance(v, float) and v <= 1e-4)}
    assert failed == {}


@pytest.mark.slow
@pytest.mark.skipif(not _ALL_PACKAGES, reason="needs sentence-transformers, onnxscript and onnxruntime")
@pytest.mark.parametrize("form", FORMS)
def test_the_code_of_the_page_runs(form: str, tmp_path: Path) -> None:
    export = write_export(form, tmp_path)
    first, *rest = python_blocks(PAGE)
    script = re.sub(r'"runs/[^"]*"', repr(str(export)), first) + "\n".join(rest)
    assert str(export) in script
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{page_name(PAGE)}: {done.stderr[-3000:]}"
    assert (tmp_path / "model.onnx").stat().st_size > 0


def test_the_page_shows_every_use_of_both_forms() -> None:
    text = PATH.read_text(encoding="utf-8")
    assert [use for use in USES if f"| {use} |" not in text] == []
    (head,) = [line for line in text.splitlines() if line.startswith("| use |")]
    versions = {form: re.findall(rf"{form}, transformers (\S+)", head) for form in FORMS}
    assert versions["native"] == versions["CramBERT"] and len(versions["native"]) >= 3
    assert "| no: " not in text


def test_the_table_shows_differences_and_reasons() -> None:
    versions = {"versions": {"torch": "2.7", "transformers": "4.53"}}
    found = table(
        {
            "native": [{**versions, "uses": {"a": 0.0, "b": 2.34e-7}}],
            "CramBERT": [{**versions, "uses": {"a": "no: KeyError: x|y", "b": 1.0}}],
        }
    )
    assert "| use | native, transformers 4.53 | CramBERT, transformers 4.53 |" in found
    assert "| a | works, 0e+00 | no: KeyError: x\\|y |" in found
    assert "| b | works, 2e-07 | works, 1e+00 |" in found
