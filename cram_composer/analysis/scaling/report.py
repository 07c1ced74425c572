"""Fit a scaling law to runs and report it as text with a page, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cram_composer.analysis.runs.run import load_run
from cram_composer.analysis.runs.table import list_runs
from cram_composer.analysis.scaling.forecast import forecast, forecast_as_json
from cram_composer.analysis.scaling.page import write_scaling
from cram_composer.analysis.scaling.prediction import as_json, fit_scaling, optimum, predict, read_points
from cram_composer.analysis.scaling.text import console_text, forecast_text, optimum_line, prediction_line
from cram_composer.errors import CramError


def report_scaling(
    items: Sequence[str],
    *,
    hold_back: int = 0,
    size_and_tokens: tuple[float, float] | None = None,
    seconds: float | None = None,
    flops_per_second: float | None = None,
    embeddings: bool = True,
    against: Sequence[str] = (),
    page: Path | None,
) -> str:
    """Fit the law to the runs that `items` select; return JSON, or text after writing `page`.

    Args:
        items: folders and key=value filters, as for `cram runs`.
        hold_back: number of the largest runs to predict instead of fitting.
        size_and_tokens: parameters and tokens to predict a loss for.
        seconds: wall-clock budget to find the best size for, at `flops_per_second` or the runs' own speed.
        embeddings: count embeddings as parameters.
        against: folders and filters of another recipe's runs, to subtract size by size.
        page: HTML file to write; None for JSON.

    Raises:
        CramError: no finished run, or too few for the requested fit or prediction.
    """
    runs, problems = list_runs(items, Path("runs"))
    points, notes = read_points(runs, embeddings)
    if not points:
        raise CramError(f"no finished run among {len(runs)} runs; give folders of finished runs")
    if hold_back >= len(points):
        raise CramError(f"--hold-back {hold_back}: must be below the number of finished runs, {len(points)}")
    scaling = fit_scaling(points, [*notes, *(f"left out: {problem}" for problem in problems)], hold_back)
    predicted = None if size_and_tokens is None else predict(scaling, *size_and_tokens)
    best = None if seconds is None else optimum(scaling, seconds, flops_per_second)
    compared = forecast(runs, list_runs(against, Path("runs"))[0]) if against else None
    if page is None:
        answers = {
            "predicted": predicted,
            "optimum": None if best is None else vars(best),
            "against": None if compared is None else forecast_as_json(compared),
        }
        return json.dumps(as_json(scaling) | answers, indent=1, ensure_ascii=False)
    sentences = []
    if size_and_tokens is not None and predicted is not None:
        sentences.append(prediction_line(*size_and_tokens, predicted))
    if best is not None and seconds is not None:
        speed = "at the runs' own speed" if flops_per_second is None else f"at {flops_per_second:.3g} FLOP/s"
        sentences.append(optimum_line(best, seconds, speed))
    written = write_scaling(scaling, [load_run(run.path) for run in runs], sentences, page, compared)
    compared_text = [] if compared is None else [forecast_text(compared)]
    return "\n".join([console_text(scaling), *sentences, *compared_text, "", f"page: {written}"])
