"""From the arguments of `cram scaling` to its answer."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cram_composer.analysis.runs.run import load_run
from cram_composer.analysis.runs.table import list_runs
from cram_composer.analysis.scaling.page import write_scaling
from cram_composer.analysis.scaling.prediction import as_json, optimum, predict, read_points, scale
from cram_composer.analysis.scaling.text import console, optimum_line, prediction_line
from cram_composer.config.units import parse_duration
from cram_composer.errors import CramError


def scaling_command(options: argparse.Namespace) -> str:
    """Fit, predict, and say it as JSON, or as text and a page. Raises CramError, one line."""
    at = _numbers(options.predict)
    seconds = None if options.budget is None else parse_duration(options.budget)
    if options.flops_per_second is not None and (seconds is None or options.flops_per_second <= 0):
        raise CramError("--flops-per-second: a speed above zero, with the time it lasts: --budget 24h")
    if options.hold_back < 0:
        raise CramError(f"--hold-back {options.hold_back}: 0 or more runs")
    runs, problems = list_runs(options.items, Path("runs"))
    points, notes = read_points(runs)
    if not points:
        raise CramError(f"no finished run among the {len(runs)} that were found; give folders of runs that are over")
    if options.hold_back >= len(points):
        raise CramError(f"--hold-back {options.hold_back}: there are only {len(points)} finished runs")
    scaling = scale(points, [*notes, *(f"left out: {problem}" for problem in problems)], options.hold_back)
    predicted = None if at is None else predict(scaling, *at)
    best = None if seconds is None else optimum(scaling, seconds, options.flops_per_second)
    if options.json:
        asked = {"predicted": predicted, "optimum": None if best is None else vars(best)}
        return json.dumps(as_json(scaling) | asked, indent=1, ensure_ascii=False)
    said = []
    if at is not None and predicted is not None:
        said.append(prediction_line(*at, predicted))
    if best is not None and seconds is not None:
        flops = options.flops_per_second
        said.append(
            optimum_line(best, seconds, "at the runs' own speed" if flops is None else f"at {flops:.3g} FLOP/s")
        )
    page = write_scaling(scaling, [load_run(run.path) for run in runs], said, options.output or Path("scaling.html"))
    return "\n".join([console(scaling), *said, "", f"page: {page}"])


def _numbers(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        parameters, tokens = map(float, text.split(","))
    except ValueError:
        parameters = tokens = 0.0
    if not (parameters > 0 and tokens > 0):
        raise CramError(f"--predict {text}: parameters and tokens, such as 1.2e8,3e9")
    return parameters, tokens
