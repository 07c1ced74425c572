"""The phases of a build, one after another; a phase is done when all of its tasks are."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cram_composer.config.schema.data_build import DataBuildConfig, FilesConfig, HubConfig, SourceConfig
from cram_composer.data.manifest import MANIFEST
from cram_composer.data.pipeline.deduplicate import DUPLICATE_STAGES, bucket_count
from cram_composer.data.pipeline.executors import SLURM_FOLDER, Executor
from cram_composer.data.pipeline.ingest import clean_sources, needs_all_documents
from cram_composer.data.pipeline.progress import Progress, print_status
from cram_composer.data.pipeline.publish import (
    check_bad_records,
    check_splits,
    merge_indexes,
    print_counts,
    upload_manifest,
    write_manifest,
)
from cram_composer.data.pipeline.rows.ordering import ORDERINGS
from cram_composer.data.pipeline.sources import (
    Source,
    held_out_files,
    held_out_share,
    open_build_sources,
    source_configs,
)
from cram_composer.data.pipeline.sources.formats import count_txt
from cram_composer.data.pipeline.tokenizer.coverage import SAMPLE_BYTES, check_coverage
from cram_composer.data.pipeline.tokenizer.sample import write_sample
from cram_composer.data.pipeline.tokenizer.tokenizer import BuiltTokenizer, adopt_tokenizer, save_tokenizer
from cram_composer.data.pipeline.tokenizer.vocabulary import train_tokenizer
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.errors import CramError
from cram_composer.jobs.slurm import cancel_left_over
from cram_composer.storage.client import Storage, is_remote

_UNKNOWN_BYTES = 10 << 30  # assumed for a source of unknown size
# Folders of the work folder that are not read after a phase.
_TEMPORARY = {
    "duplicates": ["keys"],
    "repeats": ["keys"],
    "encode": ["texts", "duplicates", "repeats"],
    "deal": ["rows"],
    "write": ["dealt"],
}


def run_pipeline(
    work: Workspace, config: DataBuildConfig, described: dict[str, Any], identity: str, progress: bool
) -> None:
    """Build the data set in `work.out` or, if the output is in object storage, there. Raises CramError and OSError."""
    key = [identity, config.output]
    sources = open_build_sources(config, source_configs(_pin_revisions(config, work.read_plan(), key)))
    _check_documents(config, sources)
    _print_left_out(sources, progress)
    # All tasks read the same commit of a data set on the hub.
    config = config.model_copy(update={"sources": [*_with_revisions(config, sources)]})
    if cancelled := cancel_left_over(work.root / SLURM_FOLDER):
        print_status(progress, f"cancelled {cancelled} Slurm jobs of the previous start")
    if not work.begin(config.model_dump(mode="json"), [*key, _inputs(sources)]):
        print_status(progress, f"resuming the build in {work.root}")
    _check_disk(work, sources)
    remote = is_remote(config.output)
    with Executor(config, progress) as executor:
        if not work.is_done("tokenizer"):
            built = _build_tokenizer(work, config, sources, progress)
            facts = {"vocab_size": built.vocab_size, "special_tokens": built.special_tokens, "sha256": built.sha256}
            work.mark_done("tokenizer", 0, facts)
        if needs_all_documents(config.stages):
            _compare_documents(work, config, sources, executor)
        _run(work, "encode", executor)
        check_bad_records(work, progress)
        check_splits(work)
        if config.ordering in ORDERINGS:
            _run(work, "sample", executor)
        _run(work, "deal", executor)
        if remote:
            Storage(config.output).delete(MANIFEST)  # the first new shard invalidates it
        _run(work, "write", executor)
    merge_indexes(work)
    write_manifest(work, described, identity)
    print_counts(work, progress)
    if remote:
        upload_manifest(work)


def _check_documents(config: DataBuildConfig, sources: list[Source]) -> None:
    """Raise CramError for one document, which leaves nothing for the other split."""
    parts = [part for source in sources for part in source.parts]
    (entry, *others) = config.sources
    if len(parts) == 1 and not others and isinstance(entry, FilesConfig) and entry.document == "file":
        path = parts[0].path
        if path is not None and count_txt(path) == 1:
            raise CramError(
                f"{path}: the only file makes one document, which cannot be split into training and validation text; "
                "set document: line or document: blank-line in sources, or add validation: {paths: [FILE]}"
            )


def _print_left_out(sources: list[Source], progress: bool) -> None:
    for source in sources:
        if source.left_out:
            by_suffix = ", ".join(f"{count} {suffix}" for suffix, count in Counter(source.left_out).most_common(8))
            total = sum(source.left_out.values())
            print_status(progress, f"{source.name}: reading {len(source.parts)} files; left out {total}: {by_suffix}")


def _pin_revisions(config: DataBuildConfig, plan: dict[str, Any] | None, key: list[Any]) -> DataBuildConfig:
    """Return the configuration with the commits of hub data sets that an interrupted build has read."""
    if plan is None or plan["key"][:2] != key:
        return config
    return config.model_copy(update={"sources": DataBuildConfig.model_validate(plan["config"]).sources})


def _with_revisions(config: DataBuildConfig, sources: list[Source]) -> Iterator[SourceConfig]:
    found = {
        (source.origin["dataset"], source.origin["subset"]): source.origin["revision"]
        for source in sources
        if source.kind == "hub"
    }
    for entry in config.sources:
        if isinstance(entry, HubConfig):
            entry = entry.model_copy(update={"revision": found.get((entry.dataset, entry.subset), entry.revision)})
        yield entry


def _compare_documents(work: Workspace, config: DataBuildConfig, sources: list[Source], executor: Executor) -> None:
    """Run the stages that compare documents."""
    stages = [stage for stage in (*DUPLICATE_STAGES, "repeated_spans") if getattr(config.stages, stage) is not None]
    if not work.is_done("layout"):
        sizes = [source.expected_bytes for source in sources]
        expected = sum(_UNKNOWN_BYTES if size is None else size for size in sizes)
        work.mark_done("layout", 0, {stage: bucket_count(expected, stage, config.partitions) for stage in stages})
    _run(work, "read", executor)
    if any(stage in DUPLICATE_STAGES for stage in stages):
        _run(work, "duplicates", executor)
    if "repeated_spans" in stages:
        _run(work, "anchors", executor)
        _run(work, "repeats", executor)


def _run(work: Workspace, phase: str, executor: Executor) -> None:
    partitions = range(work.config.partitions)
    pending = [partition for partition in partitions if not work.is_done(phase, partition)]
    if pending:
        executor.run(work.root, phase, pending)
    for folder in _TEMPORARY.get(phase, []):
        shutil.rmtree(work.root / folder, ignore_errors=True)


def _inputs(sources: list[Source]) -> list[Any]:
    """Return the files with their sizes and times, which must be unchanged for a build to resume."""
    paths = [part.path for source in sources for part in source.parts if part.path is not None]
    origins: list[Any] = [[source.name, source.origin] for source in sources]
    return [*origins, *([str(path), (stat := path.stat()).st_size, stat.st_mtime_ns] for path in paths)]


def _check_disk(work: Workspace, sources: list[Source]) -> None:
    # At 2 bytes and 4.5 characters per token, the rows and their shuffled copy take about as much space as the text.
    # Stages that compare documents store the text too, and keys of about the same size.
    copies = 3 if needs_all_documents(work.config.stages) else 1
    needed = copies * sum(source.expected_bytes or 0 for source in sources)
    used = sum(path.stat().st_size for path in work.root.rglob("*") if path.is_file())
    free = shutil.disk_usage(work.root).free + used
    if free < needed:
        raise CramError(
            f"{work.root.parent}: the build needs about {needed / 1e9:.1f} GB of disk space, {free / 1e9:.1f} GB are "
            "free; free some space or choose another output"
        )


def _build_tokenizer(work: Workspace, config: DataBuildConfig, sources: list[Source], progress: bool) -> BuiltTokenizer:
    adopted = None if config.tokenizer.path is None else adopt_tokenizer(config.tokenizer, work.tokenizer)
    sources = sources[: len(sources) - len(held_out_files(config))]
    share = held_out_share(config, 0)
    sample = work.root / "sample.txt"
    size, how = config.tokenizer.sample_bytes, config.tokenizer.sample
    if adopted is not None:
        size, how = SAMPLE_BYTES, "head"
    with Progress("sample for the tokenizer", None, progress) as bar:
        write_sample(clean_sources(sources, config.stages), sample, size, share, config.seed, bar, how)
    built = adopted or _train_tokenizer(sample, work.tokenizer, config, progress)
    check_coverage(sample, built, config, progress)
    sample.unlink()
    return built


def _train_tokenizer(sample: Path, folder: Path, config: DataBuildConfig, progress: bool) -> BuiltTokenizer:
    print_status(progress, f"training a {config.tokenizer.kind} vocabulary of {config.tokenizer.vocab_size}")
    trained = train_tokenizer(sample, config.tokenizer, config.normalise, progress and sys.stderr.isatty())
    built = save_tokenizer(trained, folder)
    if built.vocab_size < config.tokenizer.vocab_size:
        limit = "" if config.tokenizer.kind == "byte-bpe" else f" with limit_alphabet={config.tokenizer.limit_alphabet}"
        print_status(
            progress, f"the text yields only {built.vocab_size} of {config.tokenizer.vocab_size} entries{limit}"
        )
    return built
