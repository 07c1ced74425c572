"""trace.jsonl: one line per optimizer step, enough to replay the schedule without a clock."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cram_composer.errors import CramError
from cram_composer.storage.files import naming_full_disk, parse_json, write_atomic

TRACE = "trace.jsonl"


@dataclass(frozen=True)
class TraceStep:
    """One optimizer step; times in seconds, counts summed over devices."""

    step: int  # 0-based
    elapsed: float  # budget spent when the step began
    progress: float  # in [0, 1], the input of all schedules
    tokens: int  # fed to the model so far, including this step
    batch_size: int  # rows
    seq_length: int
    mlm_probability: float
    lr: float
    loss: float | None  # None if not finite
    step_seconds: float
    data_seconds: float
    threads: int | None = None  # CPU threads per process; absent in older traces


class BatchShape(Protocol):
    """The shape of the current batches, as the training loader provides it."""

    seq_length: int
    mlm_probability: float


def read_trace(run: Path) -> list[TraceStep]:
    """Read the steps of a run folder, in order. Raises CramError if there is no usable trace."""
    path = run / TRACE
    if not path.is_file():
        raise CramError(f"{path}: does not exist; set budget.replay to the folder of an earlier run")
    try:
        steps = [TraceStep(**parse_json(line)) for line in path.read_text().splitlines()]
    except (ValueError, TypeError) as error:
        raise CramError(f"{path}: not a valid trace ({error}); set budget.replay to another run") from None
    if [entry.step for entry in steps] != list(range(len(steps))) or not steps:
        raise CramError(f"{path}: steps are missing, so it cannot be replayed; set budget.replay to another run")
    return steps


class JsonLines:
    """An append-only file of JSON lines, which is truncated when a run resumes from an earlier step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None

    def cut(self, first_dropped_step: int) -> None:
        """Drop lines of steps at or after `first_dropped_step`, an incomplete last line, and damaged lines.

        Damaged lines are reported on stderr.
        """
        if not self._path.exists():
            return
        kept, damaged = [], 0
        *complete, _incomplete = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in complete:
            try:
                if parse_json(line)["step"] < first_dropped_step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            print(f"warning: {self._path}: {damaged} damaged lines were dropped", file=sys.stderr, flush=True)
        write_atomic(self._path, "".join(line + "\n" for line in kept))

    def append(self, entry: TraceStep | dict[str, Any]) -> None:
        """Write one line and flush it to the operating system."""
        with naming_full_disk(self._path):
            if self._file is None:
                self._file = open(self._path, "a", buffering=1)  # noqa: SIM115 - open for the whole run
            self._file.write(json.dumps(vars(entry) if isinstance(entry, TraceStep) else entry) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None
