"""Worked example of docs/how-to/datatrove.md, end to end, with the Python of datatrove in DATATROVE_PYTHON."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "datatrove"
PYTHON = os.environ.get("DATATROVE_PYTHON")

pytestmark = [
    pytest.mark.datatrove,
    pytest.mark.skipif(PYTHON is None, reason="DATATROVE_PYTHON is not set to the Python of datatrove's environment"),
]


def documents() -> dict[str, list[str]]:
    """Return documents by expected outcome."""
    rng = random.Random(0)
    letters = "abcdefghijklmnop"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(2000)]
    words += ["the", "and", "of", "that"] * 60  # natural text has such words, and the filter needs them

    def text(length: int = 150) -> str:
        return " ".join(rng.choices(words, k=length)) + "."

    kept = [text() for _ in range(400)]
    return {
        "kept": kept,
        "near_duplicate": [f"{original} Read more" for original in kept[:25]],
        "gopher_short_doc": [text(20) for _ in range(8)],
        "gopher_too_many_hashes": [text().replace(" ", " # ") for _ in range(4)],
        "repetition": ["\n".join(["the and of that " + text(12)] * 12) for _ in range(6)],
    }


def run_clean(source: Path, output: Path) -> dict:
    done = subprocess.run(
        [str(PYTHON), str(EXAMPLE / "clean.py"), "--input", str(source), "--output", str(output), "--workers", "2"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_cleaned_text_is_what_it_should_be_and_becomes_a_data_set(tmp_path: Path) -> None:
    made = documents()
    texts = [text for group in made.values() for text in group]
    random.Random(1).shuffle(texts)
    (tmp_path / "raw").mkdir()
    for number in range(3):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts[number::3])
        with pa.output_stream(str(tmp_path / "raw" / f"part-{number}.jsonl.zst"), compression="zstd") as file:
            file.write(lines.encode())

    counts = run_clean(tmp_path / "raw", tmp_path / "clean")
    assert counts["documents_in"] == len(texts)
    assert counts["documents_out"] == len(made["kept"])
    dropped = dict(counts["dropped"])
    for reason in ("near_duplicate", "gopher_short_doc", "gopher_too_many_hashes"):
        assert dropped.pop(reason) == len(made[reason])
    assert sum(dropped.values()) == len(made["repetition"])  # dropped by any of the repetition rules
    assert not any(reason.startswith("gopher_") for reason in dropped)

    found = pq.read_table(tmp_path / "clean").column("text").to_pylist()
    assert len(found) == counts["documents_out"]
    assert {text.removesuffix(" Read more") for text in found} == set(made["kept"])

    again = run_clean(tmp_path / "raw", tmp_path / "clean")
    assert {**again, "seconds": 0} == {**counts, "seconds": 0}

    overrides = [
        f"output={tmp_path / 'set'}",
        "tokenizer.vocab_size=400",
        "packing={sequence_length: 32, block_rows: 16}",
        "validation_fraction=0.1",
        "stages.compressibility.threshold=2.0",
    ]
    program = ["-c", "import sys; from cram_composer.cli import main; sys.exit(main())"]
    command = [sys.executable, *program, "data", "build", str(EXAMPLE / "build.yaml"), *overrides]
    environment = os.environ | {"CLEANED": str(tmp_path / "clean")}
    built = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr[-2000:]
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert sum(source["documents"] for source in manifest["sources"]) == len(found)
    assert sum(source["characters"] for source in manifest["sources"]) == sum(map(len, found))
    assert manifest["splits"]["train"]["documents"] > manifest["splits"]["validation"]["documents"] > 0
