"""Table of runs, one line each."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cram_composer.analysis.console import table_lines
from cram_composer.analysis.runs.find import filter_runs, find_runs
from cram_composer.analysis.runs.run import RunData, load_runs
from cram_composer.config.formatting import NOT_MEASURED, count, decimal, duration, is_number, short_count
from cram_composer.errors import CramError
from cram_composer.runs.folder import RECORD

COLUMNS = ("name", "status", "recipes", "seed", "budget", "tokens", "held-out loss", "device-hours", "date")


def list_runs(arguments: Sequence[str], default: Path) -> tuple[list[RunData], list[str]]:
    """Return the runs in the folders among `arguments` (or in `default`) that match its filters, and problems.

    Unreadable run folders are reported as problems, one line each.

    Raises:
        CramError: a missing folder, or an invalid filter.
    """
    folders = [Path(item) for item in arguments if Path(item).is_dir()]
    filters = [item for item in arguments if not Path(item).is_dir()]
    for item in filters:
        if "=" not in item:
            raise CramError(f"{item}: no such folder; give folders with runs, or filters such as recipe=muon seed=1")
    if not folders and not default.is_dir():
        raise CramError(f"{default}: no such folder; give the folder that contains the runs")
    paths = dict.fromkeys(run for folder in folders or [default] for run in find_runs(folder))
    runs, problems = load_runs(list(paths), curves=False)
    return filter_runs(runs, filters), problems


def row(run: RunData) -> dict[str, Any]:
    """Return the values of a run for JSON; None if not measured."""
    return {
        "name": run.name,
        "path": str(run.path),
        "status": run.get("status"),
        "recipes": run.get("recipes") or [],
        "seed": run.get("config.seed"),
        "budget": run.get("budget"),
        "world_size": run.get("world_size"),
        "tokens": run.get("tokens"),
        "validation_loss": run.get("metrics.validation_loss"),
        "device_hours": run.device_hours,
        "date": date(run).isoformat(timespec="seconds"),
        "config_hash": run.get("config_hash"),
    }


def date(run: RunData) -> datetime:
    """Return the start of the run in UTC, or the modification time of its record if no start is recorded."""
    for attempt in (run.get("attempts") or [])[:1]:
        with contextlib.suppress(KeyError, ValueError):
            return datetime.fromisoformat(attempt["started_at"])
    return datetime.fromtimestamp((run.path / RECORD).stat().st_mtime, UTC)


def budget_text(run: RunData) -> str:
    """Format the budget: 10 min, 24 device-hours, 1.2 M tokens, 500 steps, 3 epochs, or a replay."""
    budget, hours = run.get("budget") or {}, run.get("config.budget.device_hours")
    if budget.get("mode") == "replay":
        return f"replay of {count(budget.get('steps'))} steps"
    parts = [f"{hours:g} device-hours"] if is_number(hours) else []
    if is_number(budget.get("seconds")) and not parts:
        parts.append(duration(budget["seconds"]))
    parts += [f"{short_count(budget.get('tokens'))} tokens"] * is_number(budget.get("tokens"))
    parts += [f"{count(budget.get('steps'))} steps"] * is_number(budget.get("steps"))
    if is_number(epochs := budget.get("epochs")):
        parts.append(f"{epochs:g} epochs")
    return ", ".join(parts) or NOT_MEASURED


def table(runs: Sequence[RunData]) -> str:
    """Format runs as text, one line each below a header."""
    cells = [COLUMNS]
    for run in runs:
        values = row(run)
        loss, hours = values["validation_loss"], values["device_hours"]
        cells.append(
            (
                run.name,
                str(values["status"] or "-"),
                "+".join(values["recipes"]) or "-",
                "-" if values["seed"] is None else str(values["seed"]),
                budget_text(run),
                short_count(values["tokens"]),
                decimal(loss, 4) if is_number(loss) else "-",
                f"{hours:.3g}" if is_number(hours) else "-",
                f"{date(run):%Y-%m-%d %H:%M}",
            )
        )
    return "\n".join(table_lines(cells, right=(3, 5, 6, 7)))
