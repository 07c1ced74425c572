"""HTML page of a scaling law: curves of the runs, the law and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cram_composer.analysis.compare.groups import group_by_configuration
from cram_composer.analysis.compare.page import Section, write_page
from cram_composer.analysis.figures.drawing import plain_log_ticks
from cram_composer.analysis.html.style import Picture, house_style, series_style
from cram_composer.analysis.html.tables import Table
from cram_composer.analysis.runs.run import RunData
from cram_composer.analysis.scaling.forecast import Forecast
from cram_composer.analysis.scaling.law import Fit
from cram_composer.analysis.scaling.prediction import SAME_SIZE, Scaling, law_variables
from cram_composer.analysis.scaling.scores import ScoreTrend
from cram_composer.analysis.scaling.text import (
    LAWS,
    forecast_cells,
    forecast_sentences,
    held_back_cells,
    law_cells,
    score_cells,
)
from cram_composer.config.formatting import short_count

_BEYOND = 4.0  # the law is drawn up to this multiple of the longest run


def write_scaling(
    scaling: Scaling,
    runs: Sequence[RunData],
    sentences: Sequence[str],
    output: Path,
    compared: Forecast | None = None,
    trends: Sequence[ScoreTrend] = (),
) -> Path:
    """Write the page, with `sentences` below the law, and return its path. Raises CramError if `output` is a folder."""
    parts = []
    if scaling.law is not None:
        picture = draw_law(scaling, scaling.law)
        parts.append(
            Section("The law", [_table(scaling.law, law_variables(scaling.law))], list(sentences), picture=picture)
        )
    if scaling.compute is not None:
        parts.append(Section("Loss against compute", [_table(scaling.compute, ("FLOPs",))]))
    if scaling.held_back:
        header, *rows = held_back_cells(scaling)
        table = Table("Held-back runs", header, rows, numeric=(1, 2, 3, 4, 6))
        parts.append(Section("Predictions of held-back runs", [table]))
    if compared is not None:
        header, *rows = forecast_cells(compared)
        table = Table("Difference by size", header, rows, numeric=(1, 2, 3, 4))
        parts.append(Section("Against another recipe", [table], [*compared.notes, *forecast_sentences(compared)]))
    if trends:
        header, *rows = score_cells(trends)
        parts.append(Section("Scores against the loss", [Table("Scores", header, rows, numeric=(1, 2, 4, 5))]))
    notes = [*scaling.notes, *[scaling.missing] * bool(scaling.missing)]
    title = f"Scaling of {len(scaling.points)} runs"
    return write_page("scaling law", title, group_by_configuration(runs), parts, [], notes, output, first="FLOPs")


def _table(result: Fit, names: tuple[str, ...]) -> Table:
    header, *rows = law_cells(result, names)
    return Table(LAWS[names], header, rows, numeric=(1,))


def draw_law(scaling: Scaling, result: Fit) -> Picture:
    """Draw final losses against tokens, and the law, one colour per size; held-back runs are hollow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    points = [*scaling.points, *(one.point for one in scaling.held_back)]
    sizes: list[float] = []
    for size in sorted(point.parameters for point in points):
        if not sizes or np.log(size / sizes[-1]) > SAME_SIZE:
            sizes.append(size)
    with house_style():
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        axes = figure.subplots()
        tokens = np.geomspace(min(p.tokens for p in points), _BEYOND * max(p.tokens for p in points), 100)
        for number, size in enumerate(sizes):
            colour, dash = series_style(number)
            line = result.law.loss(np.stack([np.full_like(tokens, size), tokens], axis=1))
            axes.plot(tokens, line, color=colour, linestyle=dash, label=f"{short_count(size)} parameters")
            for place, point in enumerate(points):
                if abs(np.log(point.parameters / size)) <= SAME_SIZE:
                    fill = colour if place < len(scaling.points) else "none"
                    axes.plot(point.tokens, point.loss, "o", color=colour, markerfacecolor=fill, markersize=6)
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_log_ticks(axes)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axes.set_xlabel("tokens")
        axes.set_title("Final held-out loss (nats per token) and the law")
        axes.legend()
    return Picture(
        "law",
        "Dots: runs; hollow dots were held back from the fit. Lines: the law at each size.",
        f"Chart of final losses of {len(points)} runs of {len(sizes)} sizes against tokens, with the fitted law.",
        figure,
    )
