"""The last phases of a build: merge shard indexes, write the manifest, verify the upload."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections import Counter
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
from cram_composer.data.manifest_checks import HELD_OUT, SPLIT_NAME
from cram_composer.data.pipeline.ingest import (
    BAD_EXAMPLES,
    PartitionReader,
    StageStatistics,
    bad_records_error,
    enabled_stages,
    needs_all_documents,
)
from cram_composer.data.pipeline.progress import print_status
from cram_composer.data.pipeline.rows.packing import unigram_nats
from cram_composer.data.pipeline.sources import Source
from cram_composer.data.pipeline.sources.formats import count_txt
from cram_composer.data.pipeline.text import SPLITS
from cram_composer.data.pipeline.tokenizer.coverage import characters_per_token_problem
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.errors import CramError
from cram_composer.storage.client import Storage, is_remote
from cram_composer.storage.files import write_json

_SHARD = re.compile(rf"({SPLIT_NAME})/\d{{5}}/shard\.\d+\.mds(\.zstd)?")  # names of shards in a build
_LIBRARIES = ("numpy", "tokenizers", "transformers", "mosaicml-streaming", "rensa")


def check_splits(work: Workspace) -> None:
    """Raise CramError if a split has no row, or hardly any text that the tokenizer knows."""
    results = work.results("encode")
    tokenizer = work.result("tokenizer")
    assert tokenizer is not None
    special = tokenizer["special_tokens"]
    for split in work.splits:
        if not sum(result[split]["rows"] for result in results):
            documents = sum(result[split]["documents"] for result in results)
            everything = sum(result[name]["documents"] for result in results for name in work.splits)
            tokens = sum(result[split]["dropped_tokens"] for result in results)
            raise CramError(
                f"the {split} split is empty: {documents} of {everything} documents, {tokens} tokens; "
                f"{_remedy_for_empty_split(work, split, everything)}"
            )
        counts = work.token_counts("encode", split)
        known = counts.sum() - sum(counts[token] for token in {*special.values()})
        if (unknown := counts[special["unk"]]) > known:
            raise CramError(
                f"the {split} split is mostly [UNK]: {unknown} of {unknown + known} tokens; set tokenizer.kind=byte-bpe"
            )


def _remedy_for_empty_split(work: Workspace, split: str, kept: int) -> str:
    """Return what to change: the stage that dropped most documents, or the part of a file that makes a document."""
    counts = _statistics(work).counts.values()
    worst = max(counts, key=lambda stage: stage.documents_in - stage.documents_out, default=None)
    if worst is not None and (dropped := worst.documents_in - worst.documents_out) > kept:
        reasons = ", ".join(f"{reason} {times}" for reason, times in Counter(worst.reasons).most_common(4))
        return (
            f"stage '{worst.name}' dropped {dropped} of {worst.documents_in} documents ({reasons}); change its limits "
            f"or set stages.{worst.name}=null"
        )
    change = "change validation_fraction" if work.config.validation is None else "change validation.paths"
    if split.startswith(HELD_OUT):
        change = f"change held_out.{split.removeprefix(HELD_OUT)}.paths"
    opened = PartitionReader(work.config, 0).opened_sources
    paths = [part.path for _, source in opened for part in source.parts if part.path is not None]
    whole = any(getattr(entry, "document", None) == "file" for entry in work.config.sources)
    if whole and any(map(count_txt, paths)):
        return f"each .txt file is one document: set document: line or blank-line, add text or {change}"
    return f"add text or {change}"


def _statistics(work: Workspace) -> StageStatistics:
    """Return the counts and examples of all stages."""
    statistics = StageStatistics()
    for phase in ("read", "encode") if needs_all_documents(work.config.stages) else ("encode",):
        for result in work.results(phase):
            statistics.merge(result["judgements"])
    return statistics


def check_bad_records(work: Workspace, progress: bool) -> None:
    """Print the number of skipped records. Raises CramError for more than `max_bad_records` in all partitions."""
    counts = [source for result in work.results(_reading_phase(work)) for source in result["sources"]]
    bad = sum(source["bad_records"] for source in counts)
    if bad > work.config.max_bad_records:
        example = next(example for source in counts for example in source["bad_examples"])
        raise bad_records_error(work.config.max_bad_records, example)
    if bad:
        print_status(progress, f"warning: skipped {bad} bad records; {MANIFEST} has examples")


def _reading_phase(work: Workspace) -> str:
    return "read" if needs_all_documents(work.config.stages) else "encode"


def print_counts(work: Workspace, progress: bool) -> None:
    """Print the characters per token and the share of [UNK] of the finished data set."""
    splits = load_manifest(work.out)["splits"].values()
    characters, unknown = (sum(counts[key] for counts in splits) for key in ("characters", "unk_tokens"))
    # Characters of tokens that fill no row or block count too.
    tokens = sum(counts["tokens"] + counts["dropped_tokens"] - counts["padding_tokens"] for counts in splits)
    print_status(
        progress, f"{tokens:,} tokens, {characters / tokens:.2f} characters per token, {unknown / tokens:.2%} [UNK]"
    )
    if (problem := characters_per_token_problem(characters, tokens)) is not None:
        print_status(progress, f"warning: tokenizer: {problem}")


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
    statistics = _statistics(work)
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
    by_partition = [result["sources"] for result in work.results(_reading_phase(work))]
    entries = []
    for (index, source), *counts in zip(PartitionReader(work.config, 0).opened_sources, *by_partition, strict=True):
        totals: dict[str, Any] = {key: sum(each[key] for each in counts) for key in ("documents", "characters")}
        if work.config.on_bad_record == "skip":
            examples = sorted(example for each in counts for example in each["bad_examples"])
            folders = {f"{part.path.parent}/" for part in source.parts if part.path is not None}
            short = (next((e.removeprefix(f) for f in folders if e.startswith(f)), e) for e in examples[:BAD_EXAMPLES])
            totals |= {"bad_records": sum(each["bad_records"] for each in counts), "bad_record_examples": [*short]}
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
