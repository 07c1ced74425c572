"""Figures of a comparison: each group's loss along an axis as mean and range, and the final losses."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.measures import Axis, Curve, Kind, curve
from cram_composer.analysis.compare.statistics import LEVEL, student_quantile
from cram_composer.analysis.figures.curves import thin
from cram_composer.analysis.figures.drawing import ROUND_STEPS, plain_log_ticks, time_unit, token_unit
from cram_composer.analysis.html.style import LIGHT, Picture, house_style, series_style
from cram_composer.analysis.runs.run import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CURVES_WIDTH, _CURVES_HEIGHT = 4.8, 3.5  # inches; readable at the width of a phone
_FINALS_WIDTH = 4.2
_ROW, _LABEL_LINE = 0.16, 0.17  # inches per group in the figure of final losses, and per line of its name
_LABEL_LENGTH = 20  # characters per line
_POINTS = 2400  # per figure, shared by its lines
_SHOWN_FROM = 0.06  # share of the longest run; earlier losses do not affect the limits of the axis


@dataclass(frozen=True)
class LossFigure:
    """A picture with the geometry from which a script reads values.

    Attributes:
        picture: its parts have the ids `line-0`, `band-0` and `dots-0` for the first group, and so on.
        plot: `box` [left, top, width, height] in points of the SVG, `x` and `y` limits with `log` for each axis, and
            `lines`: a group's number, label and mean curve, and `unit` of its x values.
    """

    picture: Picture
    plot: dict[str, Any]


@dataclass(frozen=True)
class _Band:
    """Mean, lowest and highest loss of a group's runs: arrays [points], empty if a run has no curve."""

    x: Array
    mean: Array
    low: Array
    high: Array


def draw_losses(groups: Sequence[Group], axis: Axis) -> LossFigure | None:
    """Draw losses along an axis; None if no group has values for it."""
    from matplotlib.figure import Figure

    bands = [_band([curve(run, "training", axis) for run in group.runs], len(groups)) for group in groups]
    if not any(len(band.x) for band in bands):
        return None
    longest = max(float(band.x[-1]) for band in bands if len(band.x))
    size, label = _unit(axis, longest)
    with house_style():
        figure = Figure(figsize=(_CURVES_WIDTH, _CURVES_HEIGHT), layout="constrained")
        axes = figure.subplots()
        shown, values, evaluated = [], [], False
        for number, (group, band) in enumerate(zip(groups, bands, strict=True)):
            colour, dash = series_style(number)
            x = band.x / size
            if len(group.runs) > 1:
                axes.fill_between(x, band.low, band.high, color=colour, alpha=0.2, linewidth=0, gid=f"band-{number}")
            axes.plot(x, band.mean, color=colour, linestyle=dash, linewidth=1.5, gid=f"line-{number}")
            dots = _mean_evaluations(group, axis)
            evaluated |= len(dots.x) > 0
            _draw_evaluations(axes, dots.x / size, dots.y, colour, number)
            late = band.x >= _SHOWN_FROM * longest
            values += [*band.low[late], *band.high[late], *dots.y[-1:]]
            shown.append({"group": number, "label": group.name, "x": _rounded(x), "y": _rounded(band.mean)})
        explained = ["Bands: lowest to highest run."] * any(len(group.runs) > 1 for group in groups)
        explained += ["Dots: mean held-out loss in the training loop."] * evaluated
        _scale_axes(axes, axis, longest / size, values)
        axes.set_xlabel(label)
        axes.set_title(f"Loss against {axis}")
        axes.set_ylabel("nats per token (log scale)")
        runs = sum(len(group.runs) for group in groups)
        picture = Picture(
            f"loss-{axis.lower()}",
            " ".join(["Lines: mean training loss of a group, smoothed over 2 % of the steps.", *explained]),
            f"Line chart of the mean loss of {len(groups)} groups with {runs} runs against {axis}.",
            figure,
        )
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the script reads values by the geometry, so saving must not move the axes
    return LossFigure(picture, {**_geometry(figure, axes), "lines": shown, "unit": _reading_unit(label)})


def _band(curves: Sequence[Curve], groups: int) -> _Band:
    """Mean and range of curves on the stretch that all of them cover."""
    empty = np.zeros(0)
    if not all(len(one.x) for one in curves):
        return _Band(empty, empty, empty, empty)
    start, end = max(one.x[0] for one in curves), min(one.x[-1] for one in curves)
    points = max(60, _POINTS // (3 * groups))
    if len(curves) == 1:
        x, y = thin(curves[0].x, curves[0].y, points)
        return _Band(x, y, y, y)
    # Points are denser at the start, where losses fall fast.
    x = start + (end - start) * np.linspace(0.0, 1.0, points) ** 2
    losses = np.stack([np.interp(x, one.x, one.y) for one in curves])
    return _Band(x, losses.mean(axis=0), losses.min(axis=0), losses.max(axis=0))


def _mean_evaluations(group: Group, axis: Axis) -> Curve:
    """Mean position and loss of the n-th evaluations during training, as far as all runs have them."""
    held_out: Kind = "held-out"
    curves = [curve(run, held_out, axis) for run in group.runs]
    shortest = min(len(one.x) for one in curves)
    return Curve(
        np.mean([one.x[:shortest] for one in curves], axis=0), np.mean([one.y[:shortest] for one in curves], axis=0)
    )


def _unit(axis: Axis, longest: float) -> tuple[float, str]:
    if axis == "wall-clock":
        unit = time_unit(longest)
        return unit.size, unit.label
    if axis == "tokens":
        unit = token_unit(longest)
        return unit.size, unit.label
    return 1.0, "model FLOPs" if axis == "FLOPs" else "device-hours"


def _reading_unit(label: str) -> str:
    """Unit after a number read off an axis: "min" for wall-clock (min), "million tokens" for tokens (millions)."""
    quantity, _, unit = label.rstrip(")").partition(" (")
    return f"{unit.removesuffix('s')} {quantity}" if quantity == "tokens" else unit or label


def _draw_evaluations(axes: Axes, x: Array, y: Array, colour: str, number: int) -> None:
    axes.plot(
        x,
        y,
        color=colour,
        linestyle="none",
        marker="o",
        markersize=4.5,
        markeredgecolor=LIGHT["card"],
        markeredgewidth=0.6,
        gid=f"dots-{number}",
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


def draw_final_losses(groups: Sequence[Group]) -> Picture:
    """Draw the final held-out losses, one row per group, with the colours and ids of the curves."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [_wrapped(group.name) for group in groups]
    centres, height = [], 0.0  # inches from the top
    for name in names:
        row = _ROW + _LABEL_LINE * (1 + name.count("\n"))
        centres.append(height + row / 2)
        height += row
    descriptions = []
    with house_style():
        figure = Figure(figsize=(_FINALS_WIDTH, max(_CURVES_HEIGHT * 0.6, height + 0.9)), layout="constrained")
        axes = figure.subplots()
        for number, (group, y) in enumerate(zip(groups, centres, strict=True)):
            losses = [float(run.get("metrics.validation_loss")) for run in group.runs]
            mean, colour = statistics.fmean(losses), series_style(number)[0]
            words = f"{group.name}: {mean:.4f}"
            if len(losses) > 1:
                error = statistics.stdev(losses) / math.sqrt(len(losses))
                half = student_quantile(LEVEL, len(losses) - 1) * error
                axes.plot(
                    [mean - half, mean + half], [y, y], color=colour, linewidth=5, alpha=0.3, gid=f"band-{number}"
                )
                words += f" plus or minus {half:.4f}"
            axes.plot(losses, [y] * len(losses), "o", color=colour, markersize=3.5, alpha=0.8, gid=f"dots-{number}")
            diamond: dict[str, Any] = {"markersize": 6.5, "markeredgecolor": LIGHT["card"], "markeredgewidth": 0.7}
            axes.plot(mean, y, "D", color=colour, gid=f"line-{number}", **diamond)
            descriptions.append(words)
        axes.set_yticks(centres, names)
        axes.tick_params(axis="y", labelcolor=LIGHT["ink"])
        axes.set_ylim(height, 0.0)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
        axes.margins(x=0.05)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("nats per token")
        axes.set_title("Final held-out loss")
    return Picture(
        "final-losses",
        "Diamonds: mean of a group. Bars: 95 % interval of the mean by Student's t. Dots: single runs.",
        f"Final held-out losses in nats per token. {'; '.join(descriptions)}.",
        figure,
    )


def _wrapped(name: str) -> str:
    """A group's name in at most three lines; lists of recipes break after `+`."""
    lines = textwrap.wrap(name.replace("+", "+ "), _LABEL_LENGTH, max_lines=3, placeholder="…")
    return "\n".join(lines).replace("+ ", "+")


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
