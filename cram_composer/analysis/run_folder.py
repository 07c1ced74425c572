"""A run folder read from disk: record.json, trace.jsonl, metrics.jsonl and config.yaml, of a finished or a running cram."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from cram_composer.errors import CramError
from cram_composer.files import read_json

FORMAT_VERSION = 1
TRACE_COLUMNS = (
    "step", "elapsed", "progress", "tokens", "batch_size", "seq_length", "mlm_probability", "lr", "loss",
    "step_seconds", "data_seconds",
)  # fmt: skip
POSITION = ("step", "elapsed", "tokens")  # a line without these cannot be placed on any axis

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder, as given.
        record: record.json.
        config: the resolved configuration, nested.
        trace: column -> float64 array [steps], NaN where a value is null or absent. Steps that a kill undid (they were
            after the last checkpoint and were trained again) are left out: `step` rises strictly.
        metrics: the lines of metrics.jsonl, in order.
        unreadable_lines: lines of the two jsonl files that a kill cut short, and which are left out.
        undone_steps: steps of the trace that were left out because they were trained again after a resume.
    """

    path: Path
    record: dict[str, Any]
    config: dict[str, Any]
    trace: dict[str, Array]
    metrics: list[dict[str, Any]]
    unreadable_lines: int
    undone_steps: int

    @property
    def name(self) -> str:
        """The run's name, or its folder's where the record has none."""
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

    def get(self, dotted: str) -> Any:
        """The record's value at a dotted key, or None where any part of the way is missing."""
        value: Any = self.record
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def evaluations(self, metric: str) -> dict[str, Array]:
        """In-loop values of one metric: arrays [evaluations] `step`, `elapsed` (s), `tokens` and `value`.

        Evaluations of steps that a kill undid are left out, as those steps are.
        """
        lines = [line for line in self.metrics if isinstance(line.get(metric), (int, float))]
        lines = [line for line in _last_attempt(lines) if not self._undone(line)]
        columns = {name: _column(lines, name) for name in POSITION}
        return {**columns, "value": _column(lines, metric)}

    def _undone(self, line: dict[str, Any]) -> bool:
        # The surviving trace reached this step only after the evaluation's own time: it judged weights that were lost.
        before = int(np.searchsorted(self.trace["step"], line["step"])) - 1
        return before >= 0 and line["elapsed"] < self.trace["elapsed"][before]


def load_run(path: Path) -> Run:
    """Read a run folder, which may still be written to.

    Raises:
        CramError: the folder is missing, is not a run, or was written in a format this version does not read.
    """
    record_path = path / "record.json"
    if not record_path.is_file():
        raise CramError(f"{path} is not a run folder: it has no record.json; give the folder of a run, RUNS_DIR/RUN_NAME")
    try:
        record = read_json(record_path)
    except ValueError as error:
        raise CramError(f"{record_path} is not valid JSON ({error}); restore it or give another run") from None
    version = record.get("format_version") if isinstance(record, dict) else None
    if version != FORMAT_VERSION:
        raise CramError(
            f"{record_path} has format version {version}, this cram-composer reads {FORMAT_VERSION}; "
            "use the version that wrote it"
        )
    trace_lines, trace_bad = _read_lines(path / "trace.jsonl")
    metric_lines, metrics_bad = _read_lines(path / "metrics.jsonl")
    kept = _last_attempt(trace_lines)
    return Run(
        path=path,
        record=record,
        config=_read_config(path, record),
        trace={name: _column(kept, name) for name in TRACE_COLUMNS},
        metrics=metric_lines,
        unreadable_lines=trace_bad + metrics_bad,
        undone_steps=len(trace_lines) - len(kept),
    )


def _read_config(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    config_path = path / "config.yaml"
    if config_path.is_file():
        config: Any = OmegaConf.to_container(OmegaConf.load(config_path))
    else:
        config = record.get("config")
    return config if isinstance(config, dict) else {}


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The JSON objects of a jsonl file and the number of lines that are none.

    A last line without its newline is one being written now, and is no fault of the file.
    """
    if not path.is_file():
        return [], 0
    *complete, _being_written = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines, unreadable = [], 0
    for text in complete:
        try:
            line = json.loads(text)
        except ValueError:
            unreadable += 1
            continue
        if isinstance(line, dict) and all(isinstance(line.get(name), (int, float)) for name in POSITION):
            lines.append(line)
        else:
            unreadable += 1
    return lines, unreadable


def _last_attempt(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Only the last line of every step, and none that a later line of an earlier or equal step replaces."""
    kept: list[dict[str, Any]] = []
    earliest = float("inf")
    for line in reversed(lines):
        if line["step"] < earliest:
            kept.append(line)
            earliest = line["step"]
    return kept[::-1]


def _column(lines: Iterable[dict[str, Any]], name: str) -> Array:
    values = (line.get(name) for line in lines)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
