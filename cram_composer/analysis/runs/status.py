"""The state of a run in one line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from cram_composer.analysis.runs.run import RunData, load_run
from cram_composer.config.formatting import count, duration, is_number, percent, short_count
from cram_composer.runs.checkpoints import checkpoint_files
from cram_composer.runs.folder import CLOCK

_RECENT = 100  # steps
_SILENT_SECONDS = 60.0  # a living run writes its clock every few seconds


def run_status(path: Path) -> dict[str, Any]:
    """Read the state of a run folder, also while it trains. Raises CramError.

    Returns:
        `status`, `reason`, `progress` (share of the budget), `step`, `loss` (mean of recent steps, nats),
        `held_out_loss`, `tokens_per_second` (recent), `seconds_left` (at the pace so far), `checkpoint` (name of the
        newest), `checkpoint_age` and `silent_seconds` (since a running run last wrote its clock, if long ago); None
        where unknown.
    """
    run = load_run(path)
    running = run.get("status") == "running"
    progress = float(run.trace["progress"][-1]) if run.steps else 0.0
    checkpoint = next((file for file in checkpoint_files(path / "checkpoints") if _metadata(file).is_file()), None)
    held_out = run.get("metrics.validation_loss")
    if not is_number(held_out):
        evaluations = run.evaluations("eval/loss")["value"]
        held_out = float(evaluations[-1]) if len(evaluations) else None
    return {
        "status": run.get("status"),
        "reason": run.get("reason"),
        "progress": 1.0 if run.get("status") == "finished" else progress,
        "step": run.get("steps"),
        "loss": _recent_loss(run),
        "held_out_loss": held_out,
        "tokens_per_second": _recent_speed(run),
        "seconds_left": run.end * (1.0 - progress) / progress if running and progress > 0.0 else None,
        "checkpoint": checkpoint.stem if checkpoint else None,
        "checkpoint_age": _age(checkpoint) if checkpoint else None,
        "silent_seconds": _silence(path) if running else None,
    }


def status_line(path: Path, status: dict[str, Any]) -> str:
    """Format the result of `run_status`."""
    parts = [str(status["status"] or "unknown")]
    if status["reason"]:
        parts[0] += f" ({status['reason']})"
    if status["silent_seconds"] is not None:
        parts[0] += f", but silent for {duration(status['silent_seconds'])}: killed? The same command resumes it"
    parts.append(f"{percent(status['progress'])} of the budget")
    parts.append(f"step {count(status['step'])}")
    for name, key in (("loss", "loss"), ("held-out loss", "held_out_loss")):
        if status[key] is not None:
            parts.append(f"{name} {status[key]:.3f}")
    if status["tokens_per_second"] is not None:
        parts.append(f"{short_count(status['tokens_per_second'])} tokens/s")
    if status["seconds_left"] is not None:
        parts.append(f"{duration(status['seconds_left'])} left")
    if status["checkpoint"] is not None:
        parts.append(f"checkpoint {status['checkpoint']} {duration(status['checkpoint_age'])} ago")
    return f"{path}: {', '.join(parts)}"


def _recent_loss(run: RunData) -> float | None:
    losses = run.trace["loss"][-_RECENT:]
    losses = losses[np.isfinite(losses)]
    return float(losses.mean()) if len(losses) else None


def _recent_speed(run: RunData) -> float | None:
    tokens, elapsed = run.trace["tokens"][-_RECENT - 1 :], run.trace["elapsed"][-_RECENT - 1 :]
    return float((tokens[-1] - tokens[0]) / (elapsed[-1] - elapsed[0])) if len(tokens) > 1 else None


def _metadata(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".json")


def _age(file: Path) -> float:
    return max(0.0, time.time() - file.stat().st_mtime)


def _silence(path: Path) -> float | None:
    clock = path / CLOCK
    silent = _age(clock) if clock.is_file() else 0.0
    return silent if silent > _SILENT_SECONDS else None
