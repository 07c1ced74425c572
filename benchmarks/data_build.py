"""Compare the speed of `cram data build` and Hugging Face `datasets` on the same text, in alternation.

    python -m benchmarks.data_build                              # 40 MB of English-like text
    python -m benchmarks.data_build FOLDER --repeats 3           # all *.jsonl.zst, *.jsonl and *.parquet in a folder

Both read the same files, tokenize with the same fast tokenizer (trained beforehand on the beginning of the text), and
pack documents, each followed by [SEP], into rows of 128 tokens on disk. `cram data build` also holds documents out,
shuffles the rows and hashes its shards. `datasets` follows Hugging Face's run_mlm.py: load_dataset, then map (batched
tokenizing) and map (group_texts), num_proc = cores. Its time is given with and without load_dataset, which converts the
files to Arrow; the ratio without it favours `datasets` most. Every repeat starts two new processes, whose imports are
not timed. Prints a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.synthetic_text import FORMATS, write_files

_LENGTH = 128
_CORES = len(os.sched_getaffinity(0))


def main() -> int:
    options = _options()
    if options.side is not None:  # in the process of one measurement
        print(json.dumps(_SIDES[options.side](**json.loads(options.job))))
        return 0
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        if options.folder is None:
            files = write_files(scratch, options.megabytes * 1_000_000, "jsonl.zst", 2 * _CORES)
        else:
            files = sorted(path for path in options.folder.iterdir() if path.name.endswith(FORMATS))
        job = {"files": [str(path.absolute()) for path in files], "partitions": options.partitions}
        _side(
            "cram", {**job, "output": str(scratch / "tokenizer"), "tokenizer": None, "vocabulary": options.vocabulary}
        )
        job |= {"tokenizer": str(scratch / "tokenizer" / "tokenizer"), "vocabulary": options.vocabulary}
        repeats = []
        for repeat in range(options.repeats):
            # Alternating order, so that a drift in machine speed favours neither side.
            order = ["cram", "datasets"][:: 1 if repeat % 2 == 0 else -1]
            found = {side: _side(side, {**job, "output": str(scratch / f"{side}-{repeat}")}) for side in order}
            repeats.append(found)
            print(f"{repeat + 1}: {json.dumps(found)}", file=sys.stderr, flush=True)
    print(json.dumps(_summary(repeats)))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder of text; default: synthetic text")
    parser.add_argument("--megabytes", type=int, default=40, help="size of the synthetic text")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--partitions", type=int, default=_CORES, help="partitions of the build; default: one per core")
    parser.add_argument("--scratch", type=Path, help="folder for temporary data sets; default: the system's")
    parser.add_argument("--side", choices=_SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    return parser.parse_args()


def _side(side: str, job: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.data_build", "--side", side, "--job", json.dumps(job)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _summary(repeats: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    first = repeats[0]
    tokens = {side: first[side]["tokens"] for side in _SIDES}
    # Both must have done the same work. group_texts drops the remainder of every thousand documents.
    assert abs(tokens["cram"] / tokens["datasets"] - 1) < 0.01, tokens
    megabytes = first["cram"]["text_bytes"] / 1e6
    seconds = {side: statistics.median(found[side]["seconds"] for found in repeats) for side in _SIDES}
    return {
        "text_mb": round(megabytes, 1),
        "tokens": tokens["cram"],
        "cores": _CORES,
        "repeats": len(repeats),
        **{
            side: {
                "seconds": [round(found[side]["seconds"], 2) for found in repeats],
                "mb_per_second_and_core": round(megabytes / seconds[side] / _CORES, 3),
                "tokens_per_second_and_core": round(tokens[side] / seconds[side] / _CORES),
            }
            for side in _SIDES
        },
        # Above 1: cram is faster. Ratios of pairs, so that a slowdown of both sides cancels out.
        "ratio": _ratio(repeats, "seconds"),
        "ratio_without_load": _ratio(repeats, "map_seconds"),
    }


def _ratio(repeats: list[dict[str, dict[str, float]]], key: str) -> dict[str, float]:
    values = [found["datasets"][key] / found["cram"]["seconds"] for found in repeats]
    return {
        "median": round(statistics.median(values), 2),
        "lowest": round(min(values), 2),
        "highest": round(max(values), 2),
    }


def _cram(files: list[str], output: str, tokenizer: str | None, vocabulary: int, partitions: int) -> dict[str, float]:
    """Build a data set; without a `tokenizer`, train one and read only the beginning of the text."""
    import streaming  # noqa: F401 - imports are not counted
    import transformers  # noqa: F401

    from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, PackingConfig, TokenizerConfig
    from cram_composer.data.manifest import load_manifest
    from cram_composer.data.pipeline.build import build

    config = DataBuildConfig(
        name="speed",
        output=output,
        sources=[FilesConfig(paths=files, max_characters=None if tokenizer else 20_000_000)],
        tokenizer=TokenizerConfig(path=tokenizer) if tokenizer else TokenizerConfig(vocab_size=vocabulary),
        packing=PackingConfig(sequence_length=_LENGTH),
        partitions=partitions if tokenizer else 1,
    )
    started = time.perf_counter()
    build(config, progress=False)
    seconds = time.perf_counter() - started
    splits = load_manifest(Path(output))["splits"].values()
    text_bytes = _text_bytes(files) if tokenizer else 0
    tokens = sum(split["tokens"] + split["dropped_tokens"] for split in splits)
    return {"seconds": seconds, "tokens": tokens, "text_bytes": text_bytes}


def _text_bytes(files: list[str]) -> int:
    from cram_composer.config.schema.data_build import FilesConfig
    from cram_composer.data.pipeline.sources import open_sources

    sources = open_sources([FilesConfig(paths=files)])
    return sum(len(piece.text.encode()) for source in sources for piece in source.pieces())


def _datasets(files: list[str], output: str, tokenizer: str, vocabulary: int, partitions: int) -> dict[str, float]:
    """Prepare the text like Hugging Face's run_mlm.py."""
    os.environ |= {"HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": output, "TOKENIZERS_PARALLELISM": "false"}
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    fast = AutoTokenizer.from_pretrained(tokenizer)
    fast.model_max_length = 1 << 30  # no warnings about long documents

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        ids = fast(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*document, fast.sep_token_id] for document in ids]}

    def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = [number for document in batch["input_ids"] for number in document]
        return {"input_ids": [joined[i : i + _LENGTH] for i in range(0, len(joined) - _LENGTH + 1, _LENGTH)]}

    kind = "parquet" if files[0].endswith(".parquet") else "json"
    started = time.perf_counter()
    text = datasets.load_dataset(kind, data_files=files, split="train", num_proc=min(_CORES, len(files)))
    loaded = time.perf_counter()
    tokens = text.map(tokenize, batched=True, num_proc=_CORES, remove_columns=text.column_names)
    rows = tokens.map(group_texts, batched=True, num_proc=_CORES)
    ended = time.perf_counter()
    return {"seconds": ended - started, "map_seconds": ended - loaded, "tokens": len(rows) * _LENGTH}


_SIDES = {"cram": _cram, "datasets": _datasets}

if __name__ == "__main__":
    sys.exit(main())
