"""Figures over time: loss, learning rate, shapes and throughput, of one run or of several overlaid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cram_composer.analysis.figures.curves import ema, ema_horizon, step_corners, thin, throughput
from cram_composer.analysis.figures.drawing import (
    XAxis,
    add_line,
    finish_figure,
    last_finite,
    nested_width,
    new_figure,
    plain_log_ticks,
    power_of_ten,
    run_handles,
    run_label,
    x_unit,
)
from cram_composer.analysis.figures.ledger import draw_ledger
from cram_composer.analysis.html.style import LIGHT, Picture, house_style, series_style
from cram_composer.analysis.runs.run import RunData
from cram_composer.config.formatting import decimal, is_number, short_count

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

POINTS = 1600  # per figure, shared by its lines; more than its width in pixels
BINS = 96


def draw_all(runs: list[RunData]) -> list[Picture]:
    """Draw every figure of the report in order. One run shows raw and smoothed values; several show smoothed values."""
    with house_style():
        return [
            draw_loss(runs, "elapsed"),
            draw_loss(runs, "tokens"),
            draw_learning_rate(runs),
            draw_shapes(runs),
            draw_throughput(runs),
            draw_ledger(runs),
        ]


def draw_loss(runs: list[RunData], axis: XAxis) -> Picture:
    """Draw loss against loop time or tokens: training, held-out in the loop and final, and the unigram baseline."""
    figure, panels = new_figure(1, 3.2)
    axes = panels[0]
    axes.set_yscale("log")
    axes.set_ylabel("loss (nats per token, log scale)")
    where = "wall-clock" if axis == "elapsed" else "tokens"
    axes.set_title(f"Loss against {where}")
    handles = _draw_one_loss(axes, runs[0], axis) if len(runs) == 1 else _draw_several_losses(axes, runs, axis)
    baselines = {run.get("data.unigram_validation_nats") for run in runs}
    # Runs on different data have different baselines, so one line would be wrong for some.
    if len(baselines) == 1 and is_number(baseline := baselines.pop()) and any(run.steps for run in runs):
        label = f"unigram baseline, {baseline:.2f}"
        handles.append(axes.axhline(baseline, color=LIGHT["muted"], linestyle=(0, (4, 3)), linewidth=1.1, label=label))
    plain_log_ticks(axes)
    finish_figure(figure, panels, runs, axis, handles)
    ends = [
        f"{run_label(runs, index)}: final held-out loss {decimal(run.get('metrics.validation_loss'))}, "
        f"last held-out loss in the loop {decimal(last_finite(run.evaluations('eval/loss')['value']))}, "
        f"last smoothed training loss {decimal(last_finite(ema(run.trace['loss'], ema_horizon(run.steps))))}"
        for index, run in enumerate(runs)
    ]
    return Picture(
        name=f"loss-{where}",
        caption="Training loss is at the run's own masking rate; held-out loss masks 15 % of the tokens, all with "
        "[MASK]. Lower is better.",
        alt=f"Line chart of loss in nats per token against {where}. {'; '.join(ends)}.",
        figure=figure,
    )


def _draw_one_loss(axes: Axes, run: RunData, axis: XAxis) -> list[Artist]:
    size, horizon = x_unit([run], axis).size, ema_horizon(run.steps)
    blue, orange = series_style(0)[0], series_style(1)[0]
    x, y = thin(run.trace[axis] / size, run.trace["loss"], POINTS // 2)
    handles: list[Artist] = [*axes.plot(x, y, color=blue, alpha=0.4, linewidth=0.8, label="train, each step")]
    x, y = thin(run.trace[axis] / size, ema(run.trace["loss"], horizon), POINTS // 2)
    handles += axes.plot(x, y, color=blue, label=f"train, average of ~{horizon} steps")
    return handles + _draw_validation(axes, run, axis, size, orange)


def _draw_several_losses(axes: Axes, runs: list[RunData], axis: XAxis) -> list[Artist]:
    from matplotlib.lines import Line2D

    size = x_unit(runs, axis).size
    handles: list[Artist] = [Line2D([], [], color=LIGHT["muted"], label="train, smoothed over 2 % of the steps")]
    handles += [
        Line2D([], [], color=LIGHT["muted"], marker=marker, linestyle="none", label=name)
        for name, marker in (("held-out", "o"), ("final held-out", "D"))
    ]
    for index, run in enumerate(runs):
        smooth = ema(run.trace["loss"], ema_horizon(run.steps))
        add_line(axes, runs, index, *thin(run.trace[axis] / size, smooth, POINTS // len(runs)))
        handles.append(axes.get_lines()[-1])
        _draw_validation(axes, run, axis, size, series_style(index)[0])
    return handles


def _draw_validation(axes: Axes, run: RunData, axis: XAxis, size: float, colour: str) -> list[Artist]:
    """Draw dots for evaluations in the loop and a diamond for the final one, which covers more rows."""
    style: dict[str, Any] = {
        "color": colour,
        "linestyle": "none",
        "markeredgecolor": LIGHT["card"],
        "markeredgewidth": 0.8,
    }
    marks: list[Artist] = []
    points = run.evaluations("eval/loss")
    if len(points["value"]):
        x = points[axis] / size
        marks += axes.plot(x, points["value"], **style, marker="o", markersize=5.5, zorder=4, label="held-out")
    final = run.get("metrics.validation_loss")
    if is_number(final) and run.steps:
        end = run.end if axis == "elapsed" else run.trace["tokens"][-1]
        label = f"final held-out, {final:.2f}"
        marks += axes.plot(
            [end / size], [final], **style, marker="D", markersize=7, zorder=5, clip_on=False, label=label
        )
    return marks


def draw_learning_rate(runs: list[RunData]) -> Picture:
    """Draw the learning rate against loop time, in units of the power of ten of its peak."""
    figure, panels = new_figure(1, 3.2)
    axes = panels[0]
    peaks = [max(run.trace["lr"][np.isfinite(run.trace["lr"])], default=0.0) for run in runs]
    exponent = int(np.floor(np.log10(max(peaks)))) if max(peaks) > 0 else 0
    size = x_unit(runs, "elapsed").size
    for index, run in enumerate(runs):
        x, y = thin(run.trace["elapsed"] / size, run.trace["lr"], POINTS // len(runs))
        add_line(axes, runs, index, x, y / 10.0**exponent, linewidth=nested_width(runs, index))
    axes.set_title(f"Learning rate (in {power_of_ten(exponent)})")
    axes.set_ylim(bottom=0)
    finish_figure(figure, panels, runs, "elapsed", run_handles(axes, runs))
    description = "; ".join(f"{run_label(runs, index)}: peak {peak:.3g}" for index, peak in enumerate(peaks))
    return Picture(
        name="learning-rate",
        caption="The rate the optimizer used at each step.",
        alt=f"Line chart of the learning rate against wall-clock. {description}.",
        figure=figure,
    )


def draw_shapes(runs: list[RunData]) -> Picture:
    """Draw rows per global batch and tokens per row against loop time, one panel each."""
    figure, panels = new_figure(2, 3.2)
    size = x_unit(runs, "elapsed").size
    titles = {"batch_size": "Batch size (rows)", "seq_length": "Sequence length (tokens)"}
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for index, run in enumerate(runs):
            x, y = step_corners(run.trace["elapsed"], run.trace[column], run.end)
            width = nested_width(runs, index)
            add_line(axes, runs, index, x / size, y, drawstyle="steps-post", linewidth=width)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.08)
        axes.set_title(title)
    finish_figure(figure, panels, runs, "elapsed", run_handles(panels[0], runs))
    description = "; ".join(
        f"{run_label(runs, index)}: at the end {short_count(last_finite(run.trace['batch_size']))} rows "
        f"of {short_count(last_finite(run.trace['seq_length']))} tokens"
        for index, run in enumerate(runs)
    )
    return Picture(
        name="batch-and-sequence",
        caption="Global batch size and sequence length at each step.",
        alt=f"Two line charts against wall-clock, of batch size and of sequence length. {description}.",
        figure=figure,
    )


def draw_throughput(runs: list[RunData]) -> Picture:
    """Draw tokens per second and the share of time spent waiting for data, over equal intervals of loop time."""
    figure, panels = new_figure(2, 3.2)
    size = x_unit(runs, "elapsed").size
    for index, run in enumerate(runs):
        edges, rates, stall = throughput(run, BINS)
        # The value after the last edge closes the last interval of the step function.
        for axes, values in ((panels[0], rates / 1e3), (panels[1], 100 * stall)):
            shown = np.isfinite(values).all() and len(values) > 0
            x, y = (edges / size, np.append(values, values[-1:])) if shown else (edges[:0], values[:0])
            add_line(axes, runs, index, x, y, drawstyle="steps-post")
    panels[0].set_title("Throughput (thousand tokens per second)")
    panels[1].set_title("Data stall (% of the time)")
    panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.05)
    panels[1].set_ylim(0, max(1.0, panels[1].get_ylim()[1]))  # a stall of 0.02 % must not look like a wall
    finish_figure(figure, panels, runs, "elapsed", run_handles(panels[0], runs))
    description = "; ".join(
        f"{run_label(runs, index)}: {short_count(run.get('tokens_per_second'))} tokens per second over the whole run"
        for index, run in enumerate(runs)
    )
    return Picture(
        name="throughput",
        caption="Averages over equal intervals of wall-clock time, including evaluation, checkpoints and compilation.",
        alt=f"Two step charts against wall-clock, of tokens per second and of data stall. {description}.",
        figure=figure,
    )
