"""The tasks of a build, one function per phase, each for one partition."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cram_composer.data.pipeline import deduplicate, write_shards
from cram_composer.data.pipeline.ingest import Judgements, Reader, needs_all_documents
from cram_composer.data.pipeline.tokenize_rows import Encoder
from cram_composer.data.pipeline.workspace import Work
from cram_composer.errors import CramError
from cram_composer.storage.files import write_atomic


def read(work: Work, partition: int, progress: bool) -> dict[str, Any]:
    """Write documents to a file, for the stages that compare them."""
    facts, judgements = deduplicate.read(work, partition, progress)
    return {**facts, "judgements": judgements.as_dict()}


def encode(work: Work, partition: int, progress: bool) -> dict[str, Any]:
    """Encode documents into rows; straight from the sources unless a stage has to compare them first."""
    if needs_all_documents(work.config.stages):
        judgements = Judgements()
        encoder = Encoder(work, partition, judgements)
        encoder.run(deduplicate.survivors(work, partition, judgements, progress))
        return {**encoder.facts(), "judgements": judgements.as_dict()}
    reader = Reader(work.config, partition)
    encoder = Encoder(work, partition, reader.judgements)
    encoder.run(reader.chunks("tokens", progress))
    sources = [vars(counts) for counts in reader.sources]
    return {**encoder.facts(), "sources": sources, "judgements": reader.judgements.as_dict()}


Task = Callable[[Work, int, bool], Any]

TASKS: dict[str, Task] = {
    "read": read,
    "duplicates": deduplicate.duplicates,
    "anchors": deduplicate.anchor,
    "repeats": deduplicate.repeats,
    "encode": encode,
    "sample": write_shards.sample,
    "deal": write_shards.deal,
    "write": write_shards.write,
}


def run_task(root: Path, phase: str, partition: int, progress: bool = False) -> None:
    """Run one task of the build in `root`.

    Raises:
        CramError: why it failed, in one line; also written to `failed/PHASE.PARTITION.txt`.
    """
    work = Work(root)
    failure = root / "failed" / f"{phase}.{partition:05d}.txt"
    failure.unlink(missing_ok=True)
    try:
        work.done(phase, partition, TASKS[phase](work, partition, progress))
    except Exception as error:
        message = str(one_line_error(error, root))
        write_atomic(failure, message)
        if not isinstance(error, CramError | OSError):
            write_atomic(failure.with_suffix(".traceback"), traceback.format_exc())
            message += f" (in phase {phase}; {failure.with_suffix('.traceback')} has the traceback)"
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
