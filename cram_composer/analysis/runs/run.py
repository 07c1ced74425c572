"""Contents of the folder of a finished or running run: record.json, trace.jsonl and metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cram_composer.budget.trace import TRACE
from cram_composer.config.formatting import is_number
from cram_composer.errors import CramError
from cram_composer.runs.folder import METRICS, read_clock, read_evaluations, read_record
from cram_composer.storage.files import parse_json

TRACE_COLUMNS = (
    "step", "elapsed", "progress", "tokens", "batch_size", "seq_length", "mlm_probability", "lr", "loss",
    "step_seconds", "data_seconds",
)  # fmt: skip
POSITION = ("step", "elapsed", "tokens")  # required to place a line on any axis

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RunData:
    """One run folder.

    Attributes:
        path: the folder, as given.
        record: record.json, including the resolved configuration.
        trace: column -> float64 array [steps], NaN if a value is null or absent.
        metrics: the lines of metrics.jsonl, in order.
        evaluated: protocol -> row of evaluations.json, written by `cram eval`; empty if not evaluated.
        unreadable_lines: damaged lines of the two jsonl files, which are skipped.
    """

    path: Path
    record: dict[str, Any]
    trace: dict[str, Array]
    metrics: list[dict[str, Any]]
    evaluated: dict[str, Any]
    unreadable_lines: int

    @property
    def name(self) -> str:
        """Name of the run, or of its folder if the record has none."""
        return str(self.record.get("run_name") or self.path.resolve().name)

    @property
    def steps(self) -> int:
        """Number of optimizer steps in the trace."""
        return len(self.trace["step"])

    @property
    def end(self) -> float:
        """Loop seconds at the end of the last traced step; 0.0 before the first."""
        if not self.steps:
            return 0.0
        return float(self.trace["elapsed"][-1] + np.nan_to_num(self.trace["step_seconds"][-1]))

    @property
    def device_hours(self) -> float | None:
        """Budget spent times devices, in hours; None if not recorded."""
        if is_number(recorded := self.get("device_hours")):
            return float(recorded)
        devices, seconds = self.get("world_size"), self.get("ledger.inside_total")
        return devices * seconds / 3600.0 if is_number(devices) and is_number(seconds) else None

    def get(self, dotted: str) -> Any:
        """Return the value of the record at a dotted key, or None if any part of the key is missing."""
        value: Any = self.record
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def evaluations(self, metric: str) -> dict[str, Array]:
        """Return a metric in the loop: arrays [evaluations] `step`, `elapsed` (s), `tokens` and `value`."""
        lines = [line for line in self.metrics if is_number(line.get(metric))]
        return {**{name: _column(lines, name) for name in POSITION}, "value": _column(lines, metric)}


def load_run(path: Path, curves: bool = True) -> RunData:
    """Read a run folder, even while the run is writing to it.

    Args:
        path: the folder.
        curves: read the trace and the metrics; if False, only for a running run.

    Raises:
        CramError: not a run folder, or a damaged record, clock or evaluations.json.
    """
    record = read_record(path)
    curves = curves or record.get("status") == "running"  # its progress is in the trace only
    trace_lines, trace_bad = _read_lines(path / TRACE) if curves else ([], 0)
    metric_lines, metrics_bad = _read_lines(path / METRICS) if curves else ([], 0)
    trace = {name: _column(trace_lines, name) for name in TRACE_COLUMNS}
    return RunData(
        path=path,
        record=_add_present_progress(record, trace, path) if record.get("status") == "running" else record,
        trace=trace,
        metrics=metric_lines,
        evaluated=read_evaluations(path),
        unreadable_lines=trace_bad + metrics_bad,
    )


def load_runs(paths: Sequence[Path], curves: bool = True) -> tuple[list[RunData], list[str]]:
    """Read run folders; return the readable ones, and one line for each of the others."""
    runs, problems = [], []
    for path in paths:
        try:
            runs.append(load_run(path, curves))
        except CramError as error:
            problems.append(str(error))
    return runs, problems


def _add_present_progress(record: dict[str, Any], trace: dict[str, Array], path: Path) -> dict[str, Any]:
    """Update the record of a running run, which was written at its start, from its trace and clock."""
    clock = read_clock(path)
    inside = clock["inside"] if clock is not None else {}
    spent = sum(inside.values())
    tokens = int(trace["tokens"][-1]) if len(trace["tokens"]) else 0
    return {
        **record,
        "steps": int(trace["step"][-1]) + 1 if tokens else 0,
        "tokens": tokens,
        "tokens_per_second": tokens / spent if spent else None,
        "device_hours": None,  # recorded at the start and outdated; computed from the ledger instead
        "ledger": {**record.get("ledger", {}), "inside": inside, "inside_total": spent or None, "wall_seconds": None},
    }


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the JSON objects of a jsonl file and count the damaged lines.

    A last line without a newline is still being written and is not counted.
    """
    if not path.is_file():
        return [], 0
    *complete, _being_written = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines, unreadable = [], 0
    for text in complete:
        try:
            line = parse_json(text)
        except ValueError:
            unreadable += 1
            continue
        if isinstance(line, dict) and _has_numbers(line):
            lines.append(line)
        else:
            unreadable += 1
    return lines, unreadable


def _has_numbers(line: dict[str, Any]) -> bool:
    """Return True if the position and the columns of a line are numbers, and only other columns null."""
    return all(is_number(line.get(name)) for name in POSITION) and all(
        line.get(name) is None or is_number(line[name]) for name in TRACE_COLUMNS
    )


def _column(lines: Iterable[dict[str, Any]], name: str) -> Array:
    values = (line.get(name) for line in lines)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
