"""The end of a build: one index per split, the manifest, and, in object storage, the check that all of it is there."""

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
    verify,
)
from cram_composer.data.pipeline.ingest import Judgements, Reader, needs_all_documents, stages_on
from cram_composer.data.pipeline.rows.packing import unigram_nats
from cram_composer.data.pipeline.sources import Source
from cram_composer.data.pipeline.text import SPLITS
from cram_composer.data.pipeline.workspace import Work
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, is_remote
from cram_composer.storage.files import write_json

_SHARD = re.compile(r"(train(-[\w-]+)?|validation)/\d{5}/shard\.\d+\.mds(\.zstd)?")  # as builds name them
_LIBRARIES = ("numpy", "tokenizers", "transformers", "mosaicml-streaming", "rensa")


def check_splits(work: Work) -> None:
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


def merge_indexes(work: Work) -> None:
    """Put the indexes of the partitions' folders together, with Streaming's own merge."""
    if not work.is_done("merge"):
        for split in work.splits:
            _merge(work, split)
        work.done("merge", 0, None)
    for split in work.splits:
        for partition in range(work.config.partitions):
            (work.out / split / f"{partition:05d}" / "index.json").unlink(missing_ok=True)


def _merge(work: Work, split: str) -> None:
    from streaming.base.util import merge_index

    written = [result[split] for result in work.results("write")]
    folder = work.out / split
    parts = [folder / f"{partition:05d}" for partition, facts in enumerate(written) if facts["blocks"]]
    (folder / "index.json").unlink(missing_ok=True)
    with _quiet():
        merge_index([str(part / "index.json") for part in parts], str(folder))


@contextlib.contextmanager
def _quiet() -> Any:
    """Streaming tells of its temporary folder, and of the folder that is not empty, as warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def write_description(work: Work, described: dict[str, Any], identity: str) -> None:
    """Write examples.json and manifest.json."""
    config = work.config
    tokenizer = work.result("tokenizer")
    assert tokenizer is not None
    special = tokenizer["special_tokens"]
    judgements = Judgements()
    for phase in ("read", "encode") if needs_all_documents(config.stages) else ("encode",):
        for result in work.results(phase):
            judgements.merge(result["judgements"])
    write_json(work.out / EXAMPLES, judgements.examples.as_dict())
    splits = {split: _counts(work, split, special) for split in work.splits}
    train = sum((work.counts("write", split) for split in work.streams), np.zeros(1, np.int64))
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
        "stages": [judgements.counts[name].as_dict() for name in stages_on(config.stages) if name in judgements.counts],
        "sources": _sources(work),
        # Rounded, because the last digits of a logarithm depend on the processor.
        "unigram_validation_nats": round(
            unigram_nats(train, work.counts("write", SPLITS[1]), list(special.values())), 6
        ),
        "config": described,
        "config_hash": identity,
    }
    if not is_remote(config.output):
        verify(work.out, manifest, full=False)
    write_json(work.out / MANIFEST, manifest)


def _counts(work: Work, split: str, special: dict[str, int]) -> SplitCounts:
    encoded = [result[split] for result in work.results("encode")]
    written = [result[split] for result in work.results("write")]
    length = work.config.packing.sequence_length
    counts = work.counts("write", split)
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


def _sources(work: Work) -> list[dict[str, Any]]:
    phase = "read" if needs_all_documents(work.config.stages) else "encode"
    by_partition = [result["sources"] for result in work.results(phase)]
    entries = []
    for (index, source), *counts in zip(Reader(work.config, 0).opened, *by_partition, strict=True):
        totals = {key: sum(each[key] for each in counts) for key in ("documents", "characters")}
        entries.append({**_describe(source), "stream": work.stream_of(index), **totals})
    return entries


def _describe(source: Source) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": source.name, "kind": source.kind, "licence": source.licence, **source.origin}
    paths = [part.path for part in source.parts if part.path is not None]
    if paths:
        entry["files"] = [_describe_file(path) for path in paths]
    return entry


def _describe_file(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"path": path.name, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def upload_description(work: Work) -> None:
    """Upload what is not a shard, the manifest last, after everything it speaks of has been seen to be there.

    Shards of a data set that was there before are removed.
    """
    storage = Storage(work.config.output)
    indexes = [f"{split}/index.json" for split in work.splits]
    small = [EXAMPLES, *indexes, *(f"tokenizer/{path.name}" for path in sorted(work.tokenizer.iterdir()))]
    for name in small:
        storage.upload(work.out / name, name)
    there, expected = storage.list_sizes(), _expected(work)
    for name, size in expected.items():
        if there.get(name) != size:
            # The shards here are gone since they were uploaded: there is nothing to go on with.
            work.remove()
            found = f"{there[name]} bytes instead of {size}" if name in there else "missing"
            raise CramError(f"{storage.object_uri(name)}: {found} after its upload; start the build again")
    for name in there.keys() - expected.keys():
        if _SHARD.fullmatch(name):
            storage.delete(name)
    storage.upload(work.out / MANIFEST, MANIFEST)
    work.remove()


def _expected(work: Work) -> dict[str, int]:
    """Stored size of every shard by its name in the data set."""
    manifest = load_manifest(work.out)
    return {
        f"{split}/{shard.stored.name}": shard.stored.bytes
        for split in work.splits
        for shard in read_index(work.out, split, manifest)
    }
