"""Peak memory of a data build against the bound that cram_composer.data.assemble states (Linux only).

    python -m benchmarks.data_build_memory --megabytes 40
    python -m benchmarks.data_build_memory --megabytes 4000 --format parquet --folder /data/tmp

Makes synthetic text whose word frequencies and vocabulary growth are like a natural language's, builds a data set from
it and compares the growth of resident memory, beyond what the imported libraries take, with the bound. Prints a line
of JSON; exit status 1 if the bound is exceeded.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import streaming  # noqa: F401 - counted with the libraries, as the next is
from transformers import PreTrainedTokenizerFast  # noqa: F401

from cram_composer.config.data_schema import DataBuildConfig, SourceConfig, TokenizerConfig
from cram_composer.data.build import build
from cram_composer.data.manifest import load_manifest

_LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
_WORDS_PER_DOCUMENT = 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=40, help="size of the text")
    parser.add_argument("--format", choices=("jsonl", "parquet"), default="jsonl")
    parser.add_argument("--sample-mib", type=int, default=16, help="tokenizer.sample_bytes in MiB")
    parser.add_argument("--shuffle-mib", type=int, default=4, help="shuffle_memory_mib")
    parser.add_argument(
        "--folder", type=Path, help="where text and data set are put for the time; default: the system's"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        text = folder / f"text.{arguments.format}"
        _write_text(text, arguments.megabytes * 1_000_000)
        config = DataBuildConfig(
            name="memory",
            output=str(folder / "out"),
            sources=[SourceConfig(paths=[str(text)])],
            tokenizer=TokenizerConfig(vocab_size=8192, sample_bytes=arguments.sample_mib << 20),
            shuffle_memory_mib=arguments.shuffle_mib,
        )
        before = _status("VmRSS")
        started = time.monotonic()
        root = build(config, progress=False)
        seconds = time.monotonic() - started
        growth = _status("VmHWM") - before
        splits = load_manifest(root)["splits"]
    bound = 256 + max(2 * arguments.sample_mib, arguments.shuffle_mib)
    result = {
        "text_mb": arguments.megabytes,
        "format": arguments.format,
        "tokens": sum(split["tokens"] for split in splits.values()),
        "token_mib": round(sum(split["bytes"] for split in splits.values()) / 2**20, 1),
        "growth_mib": round(growth, 1),
        "bound_mib": bound,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result))
    return int(growth > bound)


def _documents(size: int) -> Iterator[str]:
    """Documents of Zipf-distributed words (exponent 1.5: distinct words grow as the text's length to the 2/3)."""
    random = np.random.default_rng(0)
    words: dict[int, str] = {}
    while size > 0:
        numbers = random.zipf(1.5, _WORDS_PER_DOCUMENT)
        text = " ".join(words.get(n) or words.setdefault(n, _word(n)) for n in numbers.tolist())
        size -= len(text)
        if len(words) > 1 << 16:
            words.clear()
        yield text


def _word(number: int) -> str:
    letters = ""
    while number:
        number, letter = divmod(number, len(_LETTERS))
        letters += _LETTERS[letter]
    return letters


def _write_text(path: Path, size: int) -> None:
    documents = _documents(size)
    if path.suffix == ".jsonl":
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in documents)
        return
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(documents, 10_000)):
            writer.write_table(pa.table({"text": batch}, schema))


def _status(key: str) -> float:
    """A value of /proc/self/status in MiB."""
    match = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
