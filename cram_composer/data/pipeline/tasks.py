"""The tasks of a build, one function per phase, each for one partition."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cram_composer.data.pipeline import deduplicate, write_shards
from cram_composer.data.pipeline.ingest import PartitionReader, StageStatistics, needs_all_documents
from cram_composer.data.pipeline.tokenize_rows import RowEncoder
from cram_composer.data.pipeline.workspace import Workspace
from cram_composer.errors import CramError
from cram_composer.storage.files import write_atomic


def read(work: Workspace, partition: int, progress: bool) -> dict[str, Any]:
    """Write documents to a file, for the stages that compare them."""
    facts, statistics = deduplicate.store_documents(work, partition, progress)
    return {**facts, "judgements": statistics.as_dict()}


def encode(work: Workspace, partition: int, progress: bool) -> dict[str, Any]:
    """Encode documents into rows, straight from the sources unless a stage has to compare them first."""
    if needs_all_documents(work.config.stages):
        statistics = StageStatistics()
        encoder = RowEncoder(work, partition, statistics)
        encoder.run(deduplicate.remaining_chunks(work, partition, statistics, progress))
        return {**encoder.collect_statistics(), "judgements": statistics.as_dict()}
    reader = PartitionReader(work.config, partition)
    encoder = RowEncoder(work, partition, reader.statistics)
    encoder.run(reader.chunks("tokens", progress))
    sources = [vars(counts) for counts in reader.source_counts]
    return {**encoder.collect_statistics(), "sources": sources, "judgements": reader.statistics.as_dict()}


Task = Callable[[Workspace, int, bool], Any]

TASKS: dict[str, Task] = {
    "read": read,
    "duplicates": deduplicate.find_duplicates,
    "anchors": deduplicate.write_anchors,
    "repeats": deduplicate.find_repeats,
    "encode": encode,
    "sample": write_shards.sample_sort_keys,
    "deal": write_shards.distribute_rows,
    "write": write_shards.write_partition,
}


def run_task(root: Path, phase: str, partition: int, progress: bool = False) -> None:
    """Run one task of the build in `root`.

    Raises:
        CramError: the task failed; the message is also written to `failed/PHASE.PARTITION.txt`.
    """
    work = Workspace(root)
    failure = root / "failed" / f"{phase}.{partition:05d}.txt"
    failure.unlink(missing_ok=True)
    try:
        work.mark_done(phase, partition, TASKS[phase](work, partition, progress))
    except Exception as error:
        message = str(one_line_error(error, root))
        write_atomic(failure, message)
        if not isinstance(error, CramError | OSError):
            write_atomic(failure.with_suffix(".traceback"), traceback.format_exc())
            message += f" (in phase {phase}; traceback in {failure.with_suffix('.traceback')})"
        raise CramError(message) from error


def one_line_error(error: Exception, root: Path) -> CramError:
    """Return the error as a CramError of one line."""
    if isinstance(error, CramError):
        return error
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return CramError(f"{root.parent}: the disk is full; free some space or choose another output")
    if isinstance(error, OSError):
        return CramError(f"{error.filename or root}: {error.strerror or error}")
    first_line = (str(error).splitlines() or [""])[0]
    return CramError(f"{type(error).__name__}: {first_line}")
