"""Self-contained HTML page of a comparison or of a scaling law."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cram_composer.analysis.compare.compare import Pair
from cram_composer.analysis.compare.figures import draw_final_losses, draw_losses
from cram_composer.analysis.compare.groups import Group, settings
from cram_composer.analysis.compare.measures import AXES, Axis
from cram_composer.analysis.compare.text import (
    HEADER,
    LEGEND,
    SUMMARY_HEADER,
    comparison_notes,
    group_line,
    row_cells,
    sentences,
    summary,
)
from cram_composer.analysis.html.style import LIGHT, Picture, series_style, to_inline_svg
from cram_composer.analysis.html.tables import Table
from cram_composer.analysis.html.templating import render
from cram_composer.analysis.report.configuration import differences_table
from cram_composer.config.formatting import NOT_RECORDED, decimal, duration, is_number, short_count
from cram_composer.errors import CramError
from cram_composer.storage.files import write_atomic

_SCRIPT_SAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


@dataclass(frozen=True)
class Section:
    """Section of the page: a picture, tables and lines of text."""

    title: str
    tables: list[Table]
    lines: list[str] = field(default_factory=list)
    kind: str = ""
    picture: Picture | None = None


def write_comparison(groups: Sequence[Group], pairs: Sequence[Pair], output: Path) -> Path:
    """Write the page of a comparison and return its path. Raises CramError if `output` is a folder."""
    parts = [
        Section(
            f"{pair.challenger.name} against {pair.baseline.name}",
            [Table("Every measure", HEADER, [row_cells(row) for row in pair.rows], numeric=(1, 2, 3))],
            sentences(pair),
            "measures sortable",
        )
        for pair in pairs
    ]
    if len(pairs) > 1:
        rows = Table("Every group against the baseline", SUMMARY_HEADER, summary(groups, pairs), numeric=(1, 2, 3, 5))
        parts.insert(0, Section("Summary", [rows], kind="measures sortable"))
    verdicts = [pair.verdict for pair in pairs]
    parts[-1].lines.append(LEGEND)
    budget = pairs[0].rules.budget
    return write_page(
        "comparison",
        _title(groups, pairs),
        groups,
        parts,
        verdicts,
        comparison_notes(groups, pairs),
        output,
        first=next((axis for axis in AXES if axis == budget), "wall-clock"),
    )


def _title(groups: Sequence[Group], pairs: Sequence[Pair]) -> str:
    """Title of a comparison: "4 variants against all, 3 seeds", or the name of the only challenger."""
    challengers = pairs[0].challenger.name if len(pairs) == 1 else f"{len(pairs)} variants"
    counts = sorted({len({run.get("config.seed") for run in group.runs}) for group in groups})
    seeds = f"{counts[0]} seed{'s' * (counts[0] != 1)}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"
    return f"{challengers} against {pairs[0].baseline.name}, {seeds}"


def write_page(
    kind: str,
    title: str,
    groups: Sequence[Group],
    sections: Sequence[Section],
    verdicts: Sequence[Any],
    notes: Sequence[str],
    output: Path,
    first: Axis = "wall-clock",
) -> Path:
    """Write a page with the groups' curves, `sections`, a table of runs and the differences of configurations."""
    from markupsafe import Markup

    if output.is_dir():
        raise CramError(f"{output}: is a folder; name an HTML file")
    axes = sorted(AXES, key=lambda axis: axis != first)
    drawn = [(axis, found) for axis in axes if (found := draw_losses(groups, axis)) is not None]
    finals = draw_final_losses(groups)
    html = render(
        "compare.html.j2",
        kind=kind,
        title=title,
        notes=notes,
        figures=[
            {
                "name": found.picture.name,
                "axis": axis,
                "svg": Markup(to_inline_svg(found.picture)),
                "caption": found.picture.caption,
            }
            for axis, found in drawn
        ],
        finals={"svg": Markup(to_inline_svg(finals)), "caption": finals.caption},
        plots=Markup(json.dumps({d.picture.name: d.plot for _, d in drawn}, allow_nan=False).translate(_SCRIPT_SAFE)),
        groups=[{"colour": _colour(number), "text": group_line(group)} for number, group in enumerate(groups)],
        verdicts=verdicts,
        parts=[(part, Markup(to_inline_svg(part.picture)) if part.picture else None) for part in sections],
        runs=runs_table(groups),
        differences=differences(groups),
    )
    write_atomic(output, html)
    return output


def _colour(number: int) -> str:
    return next(name for name, value in LIGHT.items() if value == series_style(number)[0])


def runs_table(groups: Sequence[Group]) -> Table:
    """Final numbers of every run, one row each."""
    rows = [
        (
            run.name,
            group.name,
            str(run.get("config.seed")),
            decimal(run.get("metrics.validation_loss"), 4),
            short_count(run.get("tokens")),
            short_count(run.get("tokens_per_second")),
            short_count(run.get("parameters")),
            duration(run.get("ledger.inside_total")),
            f"{hours:.3g}" if is_number(hours := run.device_hours) else NOT_RECORDED,
        )
        for group in groups
        for run in group.runs
    ]
    columns = ("Seed", "Held-out loss, nats", "Tokens", "Tokens/s", "Parameters", "Budget used", "Device-hours")
    return Table("Every run", ("Run", "Group", *columns), rows, numeric=tuple(range(2, 9)))


def differences(groups: Sequence[Group]) -> Table:
    """Keys whose values differ between groups, by the first run of each."""
    names = [group.name for group in groups]
    return differences_table("Keys that differ", names, [settings(group.runs[0]) for group in groups])
