"""Fit a scaling law to runs and report it as text with a page, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cram_composer.analysis.runs.run import load_run
from cram_composer.analysis.runs.table import list_runs
from cram_composer.analysis.scaling.forecast import forecast, forecast_as_json
from cram_composer.analysis.scaling.page import write_scaling
from cram_composer.analysis.scaling.points import read_points
from cram_composer.analysis.scaling.prediction import as_json, fit_scaling, optimum, predict
from cram_composer.analysis.scaling.scores import score_trends
from cram_composer.analysis.scaling.text import (
    console_text,
    forecast_text,
    optimum_line,
    prediction_line,
    score_text,
)
from cram_composer.errors import CramError


def report_scaling(
    items: Sequence[str],
    *,
    hold_back: int,
    size_and_tokens: tuple[float, float] | None,
    seconds: float | None,
    flops_per_second: float | None,
    embeddings: bool,
    in_loop: bool,
    against: Sequence[str],
    scores: str | None,
    page: Path | None,
) -> str:
    """Fit the law to the runs that `items` select; return JSON, or text after writing `page`.

    Args:
        items: folders and key=value filters, as for `cram runs`.
        hold_back: number of the largest runs to predict instead of fitting.
        size_and_tokens: parameters and tokens to predict a loss for.
        seconds: wall-clock budget to find the best size for, at `flops_per_second` or the runs' own speed.
        embeddings: count embeddings as parameters.
        in_loop: fit the losses in the loop too.
        against: folders and filters of another recipe's runs, to subtract size by size.
        scores: protocol whose scores to fit to the losses, and to expect at `size_and_tokens`.
        page: HTML file to write; None for JSON.

    Raises:
        CramError: no finished run, or too few for the requested fit or prediction.
    """
    runs, problems = list_runs(items, Path("runs"))
    if in_loop:
        runs = [load_run(run.path) for run in runs]
    points, notes = read_points(runs, embeddings, in_loop)
    if not points:
        kind = "finished run with losses in the loop" if in_loop else "finished run"
        raise CramError(f"no {kind} among {len(runs)} runs; give folders of finished runs")
    if hold_back >= len(points):
        raise CramError(f"--hold-back {hold_back}: must be below the number of finished runs, {len(points)}")
    asks_law = hold_back or size_and_tokens is not None or seconds is not None
    notes += [f"left out: {problem}" for problem in problems]
    scaling = fit_scaling(points, notes, hold_back, needs_law=bool(asks_law or not (against or scores)))
    predicted = None if size_and_tokens is None else predict(scaling, *size_and_tokens)
    best = None if seconds is None else optimum(scaling, seconds, flops_per_second)
    compared = None
    if against:
        others, unread = list_runs(against, Path("runs"))
        compared = forecast(runs, others, embeddings)
        compared.notes.extend(f"left out: {problem}" for problem in unread)
    trends = [] if scores is None else score_trends(runs, scores, None if predicted is None else predicted[0])
    if page is None:
        answers = {
            "predicted": predicted,
            "optimum": None if best is None else vars(best),
            "against": None if compared is None else forecast_as_json(compared),
            "scores": [vars(trend) for trend in trends],
        }
        return json.dumps(as_json(scaling) | answers, indent=1, ensure_ascii=False)
    sentences = []
    if size_and_tokens is not None and predicted is not None:
        sentences.append(prediction_line(*size_and_tokens, predicted))
    if best is not None and seconds is not None:
        speed = "at the runs' own speed" if flops_per_second is None else f"at {flops_per_second:.3g} FLOP/s"
        sentences.append(optimum_line(best, seconds, speed))
    drawn = runs if in_loop else [load_run(run.path) for run in runs]
    written = write_scaling(scaling, drawn, sentences, page, compared, trends)
    more = [] if compared is None else [forecast_text(compared)]
    more += [] if scores is None else [score_text(trends, scores)]
    return "\n".join([console_text(scaling), *sentences, *more, "", f"page: {written}"])
