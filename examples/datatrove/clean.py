"""Clean text with datatrove: Gopher's quality and repetition filters, then removal of MinHash near-duplicates.

    python clean.py --input FOLDER --output FOLDER

INPUT holds *.jsonl.zst (or .jsonl, .jsonl.gz) with a `text` column; OUTPUT gets *.parquet with `id` and `text`, which
`cram data build` reads. Both may be s3://bucket/path, with datatrove's extra `s3` and a local --work folder. The script
needs a separate environment, see requirements.txt, and imports nothing from cram-composer. To resume an interrupted
run, repeat the same command: finished tasks are skipped. WORK/dropped contains the dropped documents by reason. Prints
the counts as a line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.io import get_datafolder
from datatrove.pipeline.dedup import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter, ParquetWriter

# Finds documents whose sets of 5-grams have a similarity of 75 % with probability 0.77, of 80 % with 0.92.
MINHASH = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def main() -> int:
    options = _options()
    # datatrove assigns whole files to tasks; tasks beyond the number of files would be idle.
    files = sorted(name for name in get_datafolder(options.input).list_files() if _is_text(name))
    if not files:
        print(f"error: {options.input}: no .jsonl, .jsonl.gz or .jsonl.zst files", file=sys.stderr)
        return 2
    tasks = min(options.tasks or len(files), len(files))
    # File names between the steps contain task numbers, so another number of tasks cannot resume.
    settings = {"input": options.input, "files": files, "tasks": tasks}
    if not _same_as_before(options.work / "settings.json", settings):
        print(f"error: {options.work}: was used with other files or --tasks; pass another --work", file=sys.stderr)
        return 2
    (options.work / "files.txt").write_text("".join(f"{name}\n" for name in files))
    started = time.monotonic()
    counts: dict[str, list[Counter[str]]] = {}
    for name, count, pipeline in steps(options.input, options.output, options.work, tasks):
        logs = options.work / "logs" / name
        LocalPipelineExecutor(pipeline, tasks=count, workers=options.workers, logging_dir=str(logs)).run()
        counts[name] = _counts(logs)
    reader, quality, repetition, _ = counts["filter"]
    _, duplicates, writer = counts["write"]
    summary = {
        "documents_in": reader["documents"],
        "documents_out": writer["total"],
        "characters_in": reader["doc_len"],
        "characters_out": writer["doc_len"],
        "dropped": {key.removeprefix("dropped_"): number for part in (quality, repetition)
                    for key, number in sorted(part.items()) if key.startswith("dropped_")}
        | {"near_duplicate": duplicates["dropped"]},
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    print(json.dumps(summary))
    return 0


def steps(source: str, output: str, work: Path, tasks: int) -> list[tuple[str, int, list[Any]]]:
    """Return name, number of tasks and pipeline of every step; each step needs the results of the previous one."""
    passed, signatures, matches, clusters = (str(work / name) for name in ("passed", "signatures", "matches", "remove"))

    def dropped(name: str) -> JsonlWriter:
        return JsonlWriter(str(work / "dropped" / name), compression="zstd", output_filename="${rank}.jsonl")

    filters = [
        JsonlReader(source, paths_file=str(work / "files.txt")),
        GopherQualityFilter(exclusion_writer=dropped("quality")),
        GopherRepetitionFilter(exclusion_writer=dropped("repetition")),
        JsonlWriter(passed, compression="zstd", output_filename="${rank}.jsonl"),
    ]
    sign = [JsonlReader(passed), MinhashDedupSignature(signatures, config=MINHASH)]
    match = [MinhashDedupBuckets(signatures, matches, config=MINHASH)]
    cluster = [MinhashDedupCluster(matches, clusters, config=MINHASH)]
    write = [
        JsonlReader(passed),
        MinhashDedupFilter(clusters, exclusion_writer=dropped("near-duplicates")),
        ParquetWriter(output, adapter=_columns, compression="zstd"),
    ]
    return [
        ("filter", tasks, filters),
        ("sign", tasks, sign),
        ("match", MINHASH.num_buckets, match),
        ("cluster", 1, cluster),  # takes about 100 bytes of memory for each document with a duplicate
        ("write", tasks, write),
    ]


def _columns(writer: ParquetWriter, document: Any) -> dict[str, str]:
    return {"id": document.id, "text": document.text}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--work", type=Path, help="folder for intermediate files (default: OUTPUT.work)")
    parser.add_argument("--tasks", type=int, help="number of tasks (default and maximum: one per file)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="concurrent tasks (default: one per core)")
    options = parser.parse_args()
    if options.work is None:
        if "://" in options.output:
            parser.error("--work is required if --output is not a local folder")
        options.work = Path(f"{options.output.rstrip('/')}.work")
    options.work = options.work.absolute()
    return options


def _is_text(name: str) -> bool:
    return name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst"))


def _same_as_before(path: Path, settings: dict[str, Any]) -> bool:
    if path.is_file():
        return json.loads(path.read_text()) == settings
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))
    return True


def _counts(logs: Path) -> list[Counter[str]]:
    """Return the counters of a step's parts, summed over its tasks, including those of earlier runs."""
    parts: list[Counter[str]] = []
    for path in sorted((logs / "stats").iterdir()):
        for number, part in enumerate(json.loads(path.read_text())):
            if number == len(parts):
                parts.append(Counter())
            for key, value in part["stats"].items():
                parts[number][key] += value["total"] if isinstance(value, dict) else value
    return parts


if __name__ == "__main__":
    sys.exit(main())
