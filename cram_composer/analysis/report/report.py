"""Report of runs: a self-contained HTML file, and its figures as PNG files."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from cram_composer.analysis.html.style import LIGHT, series_style, to_inline_svg, to_png
from cram_composer.analysis.html.tables import Table
from cram_composer.analysis.html.templating import render
from cram_composer.analysis.report import page
from cram_composer.analysis.report.configuration import configuration_tables, differences_table
from cram_composer.analysis.report.data_set import data_set_tables
from cram_composer.analysis.report.zero_shot import zero_shot_tables
from cram_composer.analysis.runs.run import RunData, load_runs
from cram_composer.config.formatting import NOT_RECORDED, short_path
from cram_composer.config.layers import flatten
from cram_composer.errors import CramError
from cram_composer.storage.files import read_json, write_atomic

_FOLLOW_SECONDS = 60


def follow_report(runs: list[Path], output: Path | None = None) -> Path:
    """Write the report again every minute until no run is running; an open page reloads itself. See `write_report`.

    Returns:
        The path of the report.
    """
    announced = False
    while True:
        running = any(run.get("status") == "running" for run in load_runs(runs, curves=False)[0])
        target = write_report(runs, output, _FOLLOW_SECONDS if running else None)
        if not announced:
            print(target, flush=True)
            announced = True
        if not running:
            return target
        time.sleep(_FOLLOW_SECONDS)


def write_report(runs: list[Path], output: Path | None = None, refresh_seconds: int | None = None) -> Path:
    """Write the report of one run, or of several overlaid, and return its path.

    Of several runs, unreadable ones are left out with a warning on stderr.

    Args:
        runs: run folders; an unfinished run is shown up to its current step.
        output: the HTML file; by default report.html in the run's folder, for several runs in the current one. The
            figures go to `figures/*.png` beside it.
        refresh_seconds: time after which a browser reloads the page; None: never.

    Raises:
        CramError: no run, no readable run, or an output that is a folder.
    """
    from cram_composer.analysis.figures.over_time import draw_all

    if not runs:
        raise CramError("no run folder given; name at least one: cram report RUNS_DIR/RUN_NAME")
    target = output or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    if target.is_dir():
        raise CramError(f"{target}: is a folder; name an HTML file")
    loaded, problems = load_runs(runs)
    if not loaded:
        raise CramError(problems[0])
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    pictures = draw_all(loaded)
    for picture in pictures:
        write_atomic(target.parent / "figures" / f"{picture.name}.png", to_png(picture))
    figures = {picture.name: {"svg": to_inline_svg(picture), "caption": picture.caption} for picture in pictures}
    write_atomic(target, _render(loaded, figures, refresh_seconds))
    return target


def _render(runs: list[RunData], figures: dict[str, dict[str, str]], refresh_seconds: int | None) -> str:
    from markupsafe import Markup

    several = len(runs) > 1
    return render(
        "report.html.j2",
        title=runs[0].name if not several else f"{len(runs)} runs",
        refresh_seconds=refresh_seconds,
        figures={name: {**figure, "svg": Markup(figure["svg"])} for name, figure in figures.items()},
        runs=[_run_context(run, index) for index, run in enumerate(runs)],
        comparison=page.comparison(runs) if several else None,
        differences=_differences(runs) if several else None,
    )


def _differences(runs: list[RunData]) -> Table:
    names = [f"Run {number}" for number in range(1, len(runs) + 1)]
    return differences_table(
        "Configuration keys that differ", names, [flatten(run.get("config") or {}) for run in runs]
    )


def _run_context(run: RunData, index: int) -> dict[str, Any]:
    chosen, defaults = configuration_tables(run)
    return {
        "number": index + 1,
        "colour": next(name for name, value in LIGHT.items() if value == series_style(index)[0]),
        "name": run.name,
        "status": str(run.get("status") or NOT_RECORDED),
        "recipes": [str(recipe) for recipe in run.get("recipes") or []],
        "config_hash": str(run.get("config_hash") or NOT_RECORDED),
        "tiles": page.headline(run),
        "notes": page.notes(run),
        "ledger": page.ledger_tables(run),
        "fills": page.fills(run),
        "evaluations": page.evaluation_tables(run),
        "zero_shot": zero_shot_tables(run),
        "chosen": chosen,
        "defaults": defaults,
        "data": data_set_tables(run.get("data") or {}),
        "environment": page.environment_tables(run),
        "attempts": page.attempts_table(run),
        "export": _export(run.path),
    }


def _export(run: Path) -> dict[str, Any]:
    config = run / "export" / "config.json"
    written = config.is_file()
    shown = Path(short_path(run))
    if shown.is_absolute() or shown.parts[:1] == ("~",):  # another machine's layout would mean nothing to a reader
        shown = Path(run.resolve().name)
    return {
        "run": str(shown),
        "folder": str(shown / "export"),
        "written": written,
        # Architectures unknown to transformers are exported with their code.
        "own_code": written and "auto_map" in read_json(config),
    }
