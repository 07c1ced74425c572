"""Helpers shared by the figures: blank figures, axis units, shading and legends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cram_composer.analysis.figures.curves import Array, pauses
from cram_composer.analysis.html.style import LEDGER, WIDTH, series_style
from cram_composer.analysis.runs.run import RunData
from cram_composer.config.formatting import elide

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEGEND_ROW = 0.2  # inches
ROUND_STEPS = [1, 2, 2.5, 5, 10]  # between ticks, times a power of ten
PAUSE_NAMES = {"compile": "compilation", "lost": "lost to a kill"}
XAxis = Literal["elapsed", "tokens"]


@dataclass(frozen=True)
class Unit:
    """Unit of an axis: values are divided by `size`, and `label` is the axis label."""

    size: float
    label: str


def time_unit(longest: float) -> Unit:
    """Choose seconds, minutes or hours for the longest time shown (s)."""
    if longest < 180:
        return Unit(1.0, "wall-clock (s)")
    return Unit(60.0, "wall-clock (min)") if longest < 3 * 3600 else Unit(3600.0, "wall-clock (h)")


def token_unit(most: float) -> Unit:
    """Choose thousands, millions or billions for the largest count shown."""
    for size, name in ((1e9, "billions"), (1e6, "millions")):
        if most >= 2 * size:
            return Unit(size, f"tokens ({name})")
    return Unit(1e3, "tokens (thousands)")


def x_unit(runs: list[RunData], axis: XAxis) -> Unit:
    """Choose the unit for the longest run."""
    if axis == "elapsed":
        return time_unit(max(run.end for run in runs))
    return token_unit(max((float(run.trace["tokens"][-1]) for run in runs if run.steps), default=0.0))


def run_label(runs: list[RunData], index: int, length: int = 42) -> str:
    """Return the name of a run for figures: shortened to `length` characters, numbered if there are several runs."""
    name = elide(runs[index].name, length)
    return name if len(runs) == 1 else f"{index + 1} · {name}"


def new_figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of stacked panels with a shared x axis; `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])


def add_line(axes: Axes, runs: list[RunData], index: int, x: Array, y: Array, **style: Any) -> None:
    """Draw the index-th run's line in its colour."""
    colour, dash = series_style(index)
    axes.plot(x, y, color=colour, linestyle=dash, label=run_label(runs, index), **style)


def nested_width(runs: list[RunData], index: int) -> float:
    """Line width in points; wider for earlier runs, which stay visible behind later runs with equal values."""
    return min(1.8 + 1.2 * (len(runs) - 1 - index), 6.0)


def run_handles(axes: Axes, runs: list[RunData]) -> list[Artist]:
    """Return legend entries that name the runs; empty for a single run."""
    return list(axes.get_lines()) if len(runs) > 1 else []


def finish_figure(figure: Figure, panels: list[Axes], runs: list[RunData], axis: XAxis, handles: list[Artist]) -> None:
    """Label the shared x axis, shade one run's pauses and put the legend below the panels."""
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    unit = x_unit(runs, axis)
    if axis == "elapsed" and len(runs) == 1:
        shown = pauses(runs[0])
        for axes in panels:
            for pause in shown:
                span = (pause.start / unit.size, pause.end / unit.size)
                axes.axvspan(*span, facecolor=LEDGER[pause.kind], alpha=0.22, linewidth=0, zorder=0.5)
        handles = handles + [
            Patch(facecolor=LEDGER[kind], alpha=0.22, label=name)
            for kind, name in PAUSE_NAMES.items()
            if any(pause.kind == kind for pause in shown)
        ]
    for axes in panels:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
        axes.set_xlim(left=0)
        if not any(np.size(line.get_xdata()) for line in axes.get_lines()):
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center")
            axes.set_yticks([])
    panels[-1].set_xlabel(unit.label)
    if handles:
        columns = 2 if len(runs) == 1 else 1
        figure.legend(handles=handles, loc="outside lower left", ncols=columns)
        figure.set_figheight(figure.get_figheight() + LEGEND_ROW * -(-len(handles) // columns))


def plain_log_ticks(axes: Axes) -> None:
    """Set plain ticks at round numbers on a logarithmic axis that spans less than two decades."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def power_of_ten(exponent: int) -> str:
    """Format a power of ten without markup: 10⁻³."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def last_finite(values: Array) -> float:
    """Return the last finite value, or NaN."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else float("nan")
