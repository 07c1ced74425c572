"""The Hugging Face hub by its real clients: a shipped build unedited, GLUE, a model by name, and refusals."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cram_composer.models.export import export_model, exported_form
from tests.conftest import REPOSITORY
from tests.hub import COMMIT, Hub, Repository, running_hub
from tests.models.tiny_models import VOCAB_SIZE, save_tokenizer, tiny_model


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as found:
        yield found


def parquet(columns: dict[str, list]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def data_set(files: dict[str, bytes], configurations: dict[str, dict[str, str]]) -> Repository:
    """Return a data set whose card names the files of each configuration, as those of the hub do."""
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
        for name, splits in configurations.items()
    ]
    card = f"---\nconfigs: {json.dumps(entries)}\n---\n"
    return Repository(branches={"main": {"README.md": card.encode(), **files}})


def cram(hub: Hub, folder: Path, *arguments: str, status: int = 0) -> str:
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "hf"),
        "CRAM_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "cram_composer.cli", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == status, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_fineweb_edu_builds_unedited(hub: Hub, tmp_path: Path) -> None:
    chosen = random.Random(0)
    words = ["".join(chosen.choices("abcdefghijklmnopqrstuvwxyz", k=chosen.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(chosen.choices(words, k=120)) for _ in range(12_000)]
    files = {f"sample/10BT/00{part}.parquet": parquet({"text": texts[part::2]}) for part in (0, 1)}
    hub.datasets["HuggingFaceFW/fineweb-edu"] = data_set(files, {"sample-10BT": {"train": "sample/10BT/*"}})
    cram(hub, tmp_path, "data", "build", str(REPOSITORY / "yamls" / "data" / "fineweb-edu.yaml"))
    manifest = json.loads((tmp_path / "cache" / "fineweb-edu" / "manifest.json").read_text())
    assert sum(split["documents"] for split in manifest["splits"].values()) == 12_000
    (source,) = manifest["sources"]
    assert source["revision"] == COMMIT and source["licence"] == "ODC-By 1.0"


def test_a_model_by_name_is_fine_tuned_on_glue_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_model(
        exported_form(tiny_model(vocab_size=VOCAB_SIZE, positions="rotary", first_norm=False, rope_theta=10000.0)),
        save_tokenizer(tmp_path / "tokenizer"),
        folder,
        "card",
    )
    hub.models["me/mine"] = Repository(branches={"main": {path.name: path.read_bytes() for path in folder.iterdir()}})
    rows = {name: ["the river flows", "a king was born"] * 20 for name in ("sentence1", "sentence2")}
    table = parquet({**rows, "label": [0, 1] * 20, "idx": list(range(40))})
    files = {f"rte/{split}-0.parquet": table for split in ("train", "validation")}
    splits = {split: f"rte/{split}-*" for split in ("train", "validation")}
    hub.datasets["nyu-mll/glue"] = data_set(files, {"rte": splits})
    said = cram(hub, tmp_path, "eval", "me/mine", "--tasks", "rte", "--seeds", "1", "--set", "epochs=1")
    assert "RTE" in said and "me/mine" in said


@pytest.mark.parametrize(("gated", "reason"), [(True, "gated: accept its terms"), (False, "not found on the hub")])
def test_what_the_hub_refuses_is_one_line(hub: Hub, tmp_path: Path, gated: bool, reason: str) -> None:
    if gated:
        hub.datasets["me/closed"] = hub.models["me/closed"] = Repository(gated=True)
    (tmp_path / "mine.yaml").write_text("name: x\noutput: out\nsources: [{kind: hub, dataset: me/closed}]\n")
    said = cram(hub, tmp_path, "data", "build", "mine.yaml", status=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "me/closed" in line and reason in line, line
    assert not (tmp_path / "out").exists()
    said = cram(hub, tmp_path, "eval", "me/closed", "--tasks", "rte", status=2)
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "me/closed" in line and reason in line, line
