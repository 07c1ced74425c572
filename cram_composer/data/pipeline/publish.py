"""The last phases of a build: merge shard indexes, write the manifest, verify the upload."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cram_composer import __version__
from cram_composer.data.manifest import (
    EXAMPLES,
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    SplitCounts,
    load_manifest,
    read_index,
    verify_dataset,
)
from cram_composer.data.manifest_checks import SPLIT_NAME
from cram_composer.data.pipeline.ingest import PartitionReader, StageStatistics, enabled_stages, needs_all_documents
from cram_composer.data.pipeline.rows.packing import unigram_nats
from cram_composer.data.pipeline.sources import Source
from cram_composer.data.pipeline.text import SPLITS
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, is_remote
from cram_composer.storage.files import write_json

_SHARD = re.compile(rf"({SPLIT_NAME})/\d{{5}}/shard\.\d+\.mds(\.zstd)?")  # names of shards in a build
_LIBRARIES = ("numpy", "tokenizers", "transformers", "mosaicml-streaming", "rensa")


def check_splits(work: Workspace) -> None:
    """Raise CramError if a split has no row."""
    results = work.results("encode")
    for split in work.splits:
        if not sum(result[split]["rows"] for result in results):
            documents = sum(result[split]["documents"] for result in results)
            everything = sum(result[name]["documents"] for result in results for name in work.splits)
            tokens = sum(result[split]["dropped_tokens"] for result in results)
            raise CramError(
                f"the {split} split is empty: {documents} of {everything} documents, {tokens} tokens; add text or "
                "change validation_fraction"
            )


def merge_indexes(work: Workspace) -> None:
    """Merge the indexes of the partitions' folders with Streaming's own function."""
    if not work.is_done("merge"):
        for split in work.splits:
            _merge_index(work, split)
        work.mark_done("merge", 0, None)
    for split in work.splits:
        for partition in range(work.config.partitions):
            (work.out / split / f"{partition:05d}" / "index.json").unlink(missing_ok=True)


def _merge_index(work: Workspace, split: str) -> None:
    from streaming.base.util import merge_index

    written = [result[split] for result in work.results("write")]
    folder = work.out / split
    parts = [folder / f"{partition:05d}" for partition, facts in enumerate(written) if facts["blocks"]]
    (folder / "index.json").unlink(missing_ok=True)
    with _suppress_warnings():
        merge_index([str(part / "index.json") for part in parts], str(folder))


@contextlib.contextmanager
def _suppress_warnings() -> Any:
    """Suppress Streaming's warnings about its temporary folder and about a non-empty folder."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def write_manifest(work: Workspace, build_config: dict[str, Any], identity: str) -> None:
    """Write examples.json and manifest.json."""
    config = work.config
    tokenizer = work.result("tokenizer")
    assert tokenizer is not None
    special = tokenizer["special_tokens"]
    statistics = StageStatistics()
    for phase in ("read", "encode") if needs_all_documents(config.stages) else ("encode",):
        for result in work.results(phase):
            statistics.merge(result["judgements"])
    write_json(work.out / EXAMPLES, statistics.examples.as_dict())
    splits = {split: _split_counts(work, split, special) for split in work.splits}
    train = sum((work.token_counts("write", split) for split in work.streams), np.zeros(1, np.int64))
    manifest: Manifest = {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "created_with": {"cram-composer": __version__} | {library: version(library) for library in _LIBRARIES},
        "seed": config.seed,
        "sequence_length": config.packing.sequence_length,
        "block_rows": config.packing.block_rows,
        "dtype": "uint16" if tokenizer["vocab_size"] <= 65535 else "uint32",
        "vocab_size": tokenizer["vocab_size"],
        "special_tokens": special,
        "tokenizer_sha256": tokenizer["sha256"],
        "packing": config.packing.kind,
        "ordering": config.ordering,
        "compression": config.compression,
        "partitions": config.partitions,
        "streams": work.streams,
        "splits": splits,
        "stages": [
            statistics.counts[name].as_dict() for name in enabled_stages(config.stages) if name in statistics.counts
        ],
        "sources": _source_entries(work),
        # Rounded: the last digits of a logarithm depend on the processor.
        "unigram_validation_nats": round(
            unigram_nats(train, work.token_counts("write", SPLITS[1]), list(special.values())), 6
        ),
        "config": build_config,
        "config_hash": identity,
        "file_sha256": {
            path.relative_to(work.out).as_posix(): _sha256(path)
            for path in [*sorted(work.tokenizer.iterdir()), *(work.out / split / "index.json" for split in work.splits)]
        },
    }
    if config.language is not None:
        manifest["language"] = config.language
    if not is_remote(config.output):
        verify_dataset(work.out, manifest, full=False)
    write_json(work.out / MANIFEST, manifest)


def _split_counts(work: Workspace, split: str, special: dict[str, int]) -> SplitCounts:
    encoded = [result[split] for result in work.results("encode")]
    written = [result[split] for result in work.results("write")]
    length = work.config.packing.sequence_length
    counts = work.token_counts("write", split)
    rows = sum(facts["rows"] for facts in written)
    left_out = sum(facts["rows"] for facts in encoded) - rows
    return {
        "documents": sum(facts["documents"] for facts in encoded),
        "characters": sum(facts["characters"] for facts in encoded),
        "rows": rows,
        "tokens": rows * length,
        "unk_tokens": int(counts[special["unk"]]),
        "dropped_tokens": sum(facts["dropped_tokens"] for facts in encoded) + left_out * length,
        "padding_tokens": int(counts[special["pad"]]),
        "blocks": sum(facts["blocks"] for facts in written),
        "bytes": sum(facts["bytes"] for facts in written),
    }


def _source_entries(work: Workspace) -> list[dict[str, Any]]:
    phase = "read" if needs_all_documents(work.config.stages) else "encode"
    by_partition = [result["sources"] for result in work.results(phase)]
    entries = []
    for (index, source), *counts in zip(PartitionReader(work.config, 0).opened_sources, *by_partition, strict=True):
        totals = {key: sum(each[key] for each in counts) for key in ("documents", "characters")}
        entries.append({**_source_entry(source), "stream": work.stream_name(index), **totals})
    return entries


def _source_entry(source: Source) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": source.name, "kind": source.kind, "licence": source.licence, **source.origin}
    paths = [part.path for part in source.parts if part.path is not None]
    if paths:
        entry["files"] = [_file_entry(path) for path in paths]
    return entry


def _file_entry(path: Path) -> dict[str, Any]:
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def upload_manifest(work: Workspace) -> None:
    """Upload everything but shards; upload the manifest last, after checking that all files it lists have arrived.

    Removes shards of an earlier data set.
    """
    storage = Storage(work.config.output)
    indexes = [f"{split}/index.json" for split in work.splits]
    small = [EXAMPLES, *indexes, *(f"tokenizer/{path.name}" for path in sorted(work.tokenizer.iterdir()))]
    for name in small:
        storage.upload(work.out / name, name)
    found, expected = storage.list_sizes(), _expected_sizes(work)
    for name, size in expected.items():
        if found.get(name) != size:
            # Local shards are deleted after their upload, so there is nothing to resume.
            work.remove()
            problem = f"{found[name]} bytes instead of {size}" if name in found else "missing"
            raise CramError(f"{storage.object_uri(name)}: {problem} after its upload; run the same command again")
    for name in found.keys() - expected.keys():
        if _SHARD.fullmatch(name):
            storage.delete(name)
    storage.upload(work.out / MANIFEST, MANIFEST)
    work.remove()


def _expected_sizes(work: Workspace) -> dict[str, int]:
    """Return the stored size of every shard by its name in the data set."""
    manifest = load_manifest(work.out)
    return {
        f"{split}/{shard.stored.name}": shard.stored.bytes
        for split in work.splits
        for shard in read_index(work.out, split, manifest)
    }
