"""Main figure of a comparison: every run's loss along an axis in its group's colour, and the final losses."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.measures import Axis, curve
from cram_composer.analysis.compare.statistics import LEVEL, student_quantile
from cram_composer.analysis.figures.curves import thin
from cram_composer.analysis.figures.drawing import ROUND_STEPS, plain_log_ticks, time_unit, token_unit
from cram_composer.analysis.html.formatting import elide
from cram_composer.analysis.html.style import LIGHT, Picture, house_style, series_style
from cram_composer.analysis.runs.run import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 9.2, 4.2  # inches; the page gives it the whole width
_POINTS = 2400  # of all lines of a figure
MAX_NAMED_GROUPS = 6  # groups whose names have room below an axis; more are numbered, as in the legend of the page
_SHOWN_FROM = 0.06  # share of a run from which on its training loss decides what the axis shows


@dataclass(frozen=True)
class LossFigure:
    """A picture, with the geometry from which a script reads values.

    Attributes:
        picture: its lines have the ids `run-0`, `run-1`, ... in the order of the groups' runs.
        plot: `box` [left, top, width, height] in points of the SVG, `x` and `y` limits with `log` for each axis, and
            `lines`: a run's id, label and points in the axis's unit.
    """

    picture: Picture
    plot: dict[str, Any]


def draw_losses(groups: Sequence[Group], axis: Axis) -> LossFigure | None:
    """Draw losses along an axis; None if no run has values for it."""
    from matplotlib.figure import Figure

    lines = [(number, run, curve(run, "training", axis)) for number, group in enumerate(groups) for run in group.runs]
    if not any(len(line.x) for _, _, line in lines):
        return None
    longest = max(float(line.x[-1]) for _, _, line in lines if len(line.x))
    size, label = _unit(axis, longest)
    with house_style():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[3.4, 1])
        shown, values = [], []
        for place, (number, run, line) in enumerate(lines):
            x, y = thin(line.x / size, line.y, max(60, _POINTS // len(lines)))
            colour, dash = series_style(number)
            left.plot(x, y, color=colour, linestyle=dash, linewidth=1.4, gid=f"run-{place}")
            _draw_evaluations(left, run, axis, size, colour, place)
            values += [*y[x >= _SHOWN_FROM * longest / size], *curve(run, "held-out", axis).y[-1:]]
            name = f"{groups[number].name} · {run.name}"
            shown.append({"id": f"run-{place}", "group": number, "label": name, "x": _rounded(x), "y": _rounded(y)})
        _scale_axes(left, axis, longest / size, values)
        left.set_xlabel(label)
        left.set_title(f"Loss against {axis}")
        left.set_ylabel("nats per token")
        finals = _draw_final_losses(right, groups)
        picture = Picture(
            f"loss-{axis.lower()}",
            "Lines: training loss at each run's own masking rate, smoothed over 2 % of its steps. Dots: held-out loss "
            "in the loop. Right: final held-out loss of every run, its group's mean and that mean's 95 % interval by "
            "Student's t.",
            f"Line chart of the loss of {len(lines)} runs against {axis}. {finals}",
            figure,
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # saving would move the axes by a little, and the script reads values off them
    return LossFigure(picture, {**_geometry(figure, left), "lines": shown, "unit": label})


def _unit(axis: Axis, longest: float) -> tuple[float, str]:
    if axis == "wall-clock":
        unit = time_unit(longest)
        return unit.size, unit.label
    if axis == "tokens":
        unit = token_unit(longest)
        return unit.size, unit.label
    return 1.0, "model FLOPs" if axis == "FLOPs" else "device-hours"


def _draw_evaluations(axes: Axes, run: RunData, axis: Axis, size: float, colour: str, place: int) -> None:
    points = curve(run, "held-out", axis)
    axes.plot(
        points.x / size,
        points.y,
        color=colour,
        linestyle="none",
        marker="o",
        markersize=4,
        markeredgecolor=LIGHT["card"],
        markeredgewidth=0.6,
        gid=f"dots-{place}",
    )


def _scale_axes(axes: Axes, axis: Axis, longest: float, values: list[float]) -> None:
    """Set a logarithmic loss axis that leaves out the first steps, and a logarithmic axis for FLOPs."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    axes.set_yscale("log")
    plain_log_ticks(axes)
    if values:
        axes.set_ylim(0.985 * min(values), 1.015 * max(values))
    if axis == "FLOPs":
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}".replace("e+", "e")))
        axes.set_xlim(_SHOWN_FROM * longest, 1.1 * longest)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
        axes.set_xlim(0.0, 1.01 * longest)


def _draw_final_losses(axes: Axes, groups: Sequence[Group]) -> str:
    """Draw final losses on their own axes and return them in words."""
    descriptions = []
    for number, group in enumerate(groups):
        losses = [float(run.get("metrics.validation_loss")) for run in group.runs]
        mean, colour = statistics.fmean(losses), series_style(number)[0]
        words = f"{group.name}: final held-out loss {mean:.4f}"
        axes.plot([number - 0.16] * len(losses), losses, "o", color=colour, markersize=3.5, alpha=0.7)
        if len(losses) > 1:
            error = statistics.stdev(losses) / math.sqrt(len(losses))
            half = student_quantile(LEVEL, len(losses) - 1) * error
            axes.errorbar(number + 0.12, mean, yerr=half, fmt="D", color=colour, markersize=6, capsize=4)
            words += f" plus or minus {half:.4f}"
        else:
            axes.plot(number + 0.12, mean, "D", color=colour, markersize=6)
        descriptions.append(words)
    many = len(groups) > MAX_NAMED_GROUPS
    names = [str(number + 1) if many else elide(group.name, 14) for number, group in enumerate(groups)]
    axes.set_xticks(range(len(groups)), names)
    if 2 < len(groups) <= MAX_NAMED_GROUPS:
        for label in axes.get_xticklabels():
            label.set(rotation=40, horizontalalignment="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(groups) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_title("Final held-out loss")
    return "; ".join(descriptions) + "."


def _geometry(figure: Figure, axes: Axes) -> dict[str, Any]:
    width, height = (72.0 * inches for inches in figure.get_size_inches())
    box = axes.get_position()
    return {
        "box": [box.x0 * width, (1 - box.y1) * height, box.width * width, box.height * height],
        "x": [float(limit) for limit in axes.get_xlim()],
        "y": [float(limit) for limit in axes.get_ylim()],
        "log": [axes.get_xscale() == "log", axes.get_yscale() == "log"],
    }


def _rounded(values: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in np.asarray(values)]
