"""Compare the peak memory of a data build with the bound stated in cram_composer.data.pipeline.build (Linux only).

    python -m benchmarks.data_build_memory --megabytes 40
    python -m benchmarks.data_build_memory --megabytes 5000 --format jsonl.zst --stages all --partitions 8 --folder DIR

Writes English-like text (benchmarks.synthetic_text), builds a data set from it in a separate process, and watches that
process and its descendants. The bound applies to the private memory of each process, beyond its size after the imports
of the libraries; the sums over all processes are reported too. Prints a line of JSON; the exit status is 1 if the bound
is exceeded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import streaming  # noqa: F401 - counted with the libraries, as the next is
from transformers import PreTrainedTokenizerFast  # noqa: F401

from benchmarks.process_tree import TreeMemory, own_memory
from benchmarks.synthetic_text import FORMATS, write_files
from cram_composer.config.schema.data_build import (
    CleanConfig,
    CompressibilityConfig,
    DataBuildConfig,
    ExactDuplicatesConfig,
    FilesConfig,
    LanguageConfig,
    LengthConfig,
    NearDuplicatesConfig,
    QualityConfig,
    RepeatedSpansConfig,
    StagesConfig,
    TokenizerConfig,
)
from cram_composer.data.manifest import load_manifest
from cram_composer.data.pipeline.build import build

_LOOK_SECONDS = 0.2
_STAGES = {
    "none": StagesConfig(),
    "all": StagesConfig(
        clean=CleanConfig(),
        length=LengthConfig(),
        quality=QualityConfig(),
        language=LanguageConfig(),
        exact_duplicates=ExactDuplicatesConfig(),
        near_duplicates=NearDuplicatesConfig(),
        repeated_spans=RepeatedSpansConfig(),
        compressibility=CompressibilityConfig(threshold=0.4),  # the synthetic words need more tokens than English
    ),
}


def main() -> int:
    options = _options()
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        cores = len(os.sched_getaffinity(0))
        files = write_files(folder, options.megabytes * 1_000_000, options.format, options.files, cores)
        config = DataBuildConfig(
            name="memory",
            output=str(folder / "out"),
            sources=[FilesConfig(paths=[str(path) for path in files])],
            stages=_STAGES[options.stages],
            tokenizer=TokenizerConfig(vocab_size=8192, sample_bytes=options.sample_mib << 20),
            shuffle_memory_mib=options.shuffle_mib,
            partitions=options.partitions,
            jobs=options.jobs,
        )
        started = time.monotonic()
        libraries, memory = _watched(config)
        seconds = time.monotonic() - started
        manifest = load_manifest(folder / "out")
    splits = manifest["splits"].values()
    bound = 256 + max(2 * options.sample_mib, options.shuffle_mib)
    growth = memory.largest - libraries
    result = {
        "text_mb": options.megabytes,
        "format": options.format,
        "stages": options.stages,
        "partitions": options.partitions,
        "tokens": sum(split["tokens"] for split in splits),
        "token_mib": round(sum(split["bytes"] for split in splits) / 2**20, 1),
        "documents_left": {stage["name"]: stage["documents_out"] for stage in manifest["stages"]},
        "growth_mib": round(growth, 1),
        "bound_mib": bound,
        "libraries_mib": round(libraries, 1),
        "tree_pss_mib": round(memory.total, 1),
        "tree_rss_mib": round(memory.rss, 1),
        "processes": memory.processes,
        "seconds": round(seconds, 1),
    }
    print(json.dumps(result))
    return int(growth > bound)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=40, help="size of the text")
    parser.add_argument("--format", choices=FORMATS, default="jsonl")
    parser.add_argument("--files", type=int, help="number of files; default: one per 500 MB, at least one per core")
    parser.add_argument("--stages", choices=_STAGES, default="none")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--jobs", type=int, help="concurrent partitions; default: one per core")
    parser.add_argument("--sample-mib", type=int, default=16, help="tokenizer.sample_bytes in MiB")
    parser.add_argument("--shuffle-mib", type=int, default=4, help="shuffle_memory_mib")
    parser.add_argument("--folder", type=Path, help="folder for temporary text and data; default: the system's")
    options = parser.parse_args()
    options.files = options.files or max(options.megabytes // 500, len(os.sched_getaffinity(0)))
    return options


def _watched(config: DataBuildConfig) -> tuple[float, TreeMemory]:
    """Build in a separate process; return its memory (MiB) before the build, and the peaks of its process tree."""
    here, there = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_build, args=(config, there))
    process.start()
    libraries = here.recv()
    memory = TreeMemory(process.pid or 0)
    here.send("begin")
    while process.is_alive():
        memory.look()
        process.join(_LOOK_SECONDS)
    if process.exitcode:
        sys.exit(f"the build failed with status {process.exitcode}")
    return libraries, memory


def _build(config: DataBuildConfig, pipe: Connection) -> None:
    pipe.send(own_memory())
    pipe.recv()
    build(config, progress=False)


if __name__ == "__main__":
    sys.exit(main())
