"""Ledger figure: time inside and outside the budget as stacked bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from cram_composer.analysis.figures.drawing import ROUND_STEPS, new_figure, run_label, time_unit
from cram_composer.analysis.html.style import LEDGER, LIGHT, Picture
from cram_composer.analysis.runs.run import RunData
from cram_composer.config.formatting import duration, is_number, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Corner = Literal["outside lower left", "outside lower right"]

ROW = 2.6  # axis units from one run's bars to the next's
LEAST_LABELLED = 0.12  # share of the axis; narrower pieces have no room for a percentage


def draw_ledger(runs: list[RunData]) -> Picture:
    """Draw a thick bar per run for the time inside the budget and a thin bar for the time outside, at one scale."""
    inside = [_items(run, "inside") for run in runs]
    outside = [_items(run, "outside") for run in runs]
    longest = max(sum(items.values()) for items in inside + outside)
    entries = max(len({name for items in side for name in items}) for side in (inside, outside))
    figure, panels = new_figure(1, 1.55 + 0.75 * len(runs) + 0.19 * entries)
    axes = panels[0]
    for index, (budgeted, unbudgeted) in enumerate(zip(inside, outside, strict=True)):
        top = -ROW * index
        _stack(axes, top, 0.9, budgeted, longest, labelled=True)
        _stack(axes, top - 0.8, 0.35, unbudgeted, longest, labelled=False)
        heading = f"inside {duration(sum(budgeted.values()))}, outside {duration(sum(unbudgeted.values()))}"
        if len(runs) > 1:
            heading = f"{run_label(runs, index, 20)}: {heading}"
        axes.text(0, top + 0.6, heading, fontsize=9, color=LIGHT["muted"])
    _scale(axes, len(runs), longest)
    _legend(figure, "outside lower left", "Inside the budget (thick)", inside, entries, shares=True)
    _legend(figure, "outside lower right", "Outside it (thin)", outside, entries, shares=False)
    description = "; ".join(
        f"{run_label(runs, index)}: " + (", ".join(f"{n} {s:.1f} s" for n, s in items.items()) or "not measured")
        for index, items in enumerate(inside)
    )
    return Picture(
        name="ledger",
        caption="Thick bar: time that counts towards the budget. Thin bar, at the same scale: time that does not. "
        "Phases of zero seconds are in the table only.",
        alt=f"Stacked bars of the time inside the budget. {description}.",
        figure=figure,
    )


def _items(run: RunData, side: str) -> dict[str, float]:
    recorded = run.get(f"ledger.{side}") or {}
    items = {name: float(value) for name, value in recorded.items() if is_number(value) and value > 0}
    return {name: items[name] for name in _sorted_items(items)}


def _sorted_items(names: Iterable[str]) -> list[str]:
    order = list(LEDGER)
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _stack(axes: Axes, y: float, height: float, items: dict[str, float], longest: float, labelled: bool) -> None:
    left, total = 0.0, sum(items.values())
    for name, seconds in items.items():
        axes.barh(
            y, seconds, height, left=left, color=_colour(name), edgecolor=LIGHT["card"], linewidth=0.6, align="center"
        )
        if labelled and seconds / longest >= LEAST_LABELLED:
            axes.text(
                left + seconds / 2, y, percent(seconds / total), ha="center", va="center_baseline", color=LIGHT["card"]
            )
        left += seconds


def _scale(axes: Axes, runs: int, longest: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    unit = time_unit(longest)
    scaled = MaxNLocator(6, steps=ROUND_STEPS).tick_values(0.0, longest / unit.size)
    axes.set_xticks([tick * unit.size for tick in scaled if tick * unit.size <= longest * 1.005])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds / unit.size:g}"))
    axes.set_xlim(0, (longest or 1.0) * 1.005)
    axes.set_ylim(-ROW * (runs - 1) - 1.3, 1.3)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlabel(unit.label)
    axes.set_title("Time by phase")


def _legend(figure: Figure, corner: Corner, title: str, sides: list[dict[str, float]], rows: int, shares: bool) -> None:
    from matplotlib.patches import Patch

    handles = []
    for name in _sorted_items({name for items in sides for name in items}):
        label = name.replace("_", " ")
        if len(sides) == 1:
            label += f"  {sides[0][name]:,.1f} s"
            label += f" ({percent(sides[0][name] / sum(sides[0].values()))})" if shares else ""
        handles.append(Patch(facecolor=_colour(name), label=label))
    # Equal heights align the titles of the two bottom-aligned legends.
    handles += [Patch(alpha=0.0, label=" ")] * (rows - len(handles))
    if handles:
        legend = figure.legend(
            handles=handles,
            loc=corner,
            title=title,
            alignment="left",
            handlelength=1.0,
            fontsize=9,
            title_fontsize=9,
        )
        legend.get_title().set_color(LIGHT["muted"])


def _colour(name: str) -> str:
    return LEDGER.get(name, LIGHT["inside-other"])
