"""A comparison as console text and as JSON values."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cram_composer.analysis.compare.compare import Pair
from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.time_to_loss import TimeToLoss
from cram_composer.analysis.compare.verdict import NO_VERDICT, Row
from cram_composer.analysis.console import table_lines
from cram_composer.config.formatting import is_number, percent, short_count, signed

_WIDTH = 120
HEADER = ("measure", "challenger", "baseline", "difference", "95 % interval", "method")
LEGEND = (
    "Differences are challenger minus baseline; for losses, negative is better. Verdicts use the interval by "
    "Student's t. Losses at a common point of a curve may predate the end of a learning-rate schedule; final losses do "
    "not."
)


def console_text(groups: Sequence[Group], pairs: Sequence[Pair]) -> str:
    """Format the groups, a table and times to loss for every pair, and the verdicts."""
    lines = [group_line(group) for group in groups]
    lines += [f"note: {note}" for note in comparison_notes(groups, pairs)]
    for pair in pairs:
        lines += ["", f"{pair.challenger.name} against {pair.baseline.name}"]
        lines += [f"  {line}" for line in table_lines([HEADER, *map(row_cells, pair.rows)], right=(1, 2, 3))]
        lines += [f"  {sentence}" for sentence in sentences(pair)]
    lines += ["", textwrap.fill(LEGEND, _WIDTH)]
    return "\n".join([*lines, *_verdicts(pairs)])


SUMMARY_HEADER = ("group", "runs", "held-out loss, nats", "difference", "95 % interval", "tokens/s", "verdict")


def summary(groups: Sequence[Group], pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """Return one row per group, the baseline first, with the columns of SUMMARY_HEADER."""
    by_name = {pair.challenger.name: pair for pair in pairs}
    baseline = pairs[0].baseline.name
    rows: list[tuple[str, ...]] = []
    for group in sorted(groups, key=lambda group: group.name != baseline):
        losses = [run.get("metrics.validation_loss") for run in group.runs]
        loss = f"{statistics.fmean(losses):.4f}"
        pair = by_name.get(group.name)
        if pair is None:
            rows.append((group.name, str(len(group.runs)), loss, "", "", "", "baseline"))
            continue
        final, speed = (row_cells(row) for row in (pair.rows[0], next(r for r in pair.rows if r.unit == "tokens/s")))
        unit = "" if pair.rows[0].unit == "nats" else f" {pair.rows[0].unit}"
        shown = (final[3] + unit, final[4]) if pair.rows[0].difference is not None else ("-", "")
        rows.append((group.name, str(len(group.runs)), loss, *shown, speed[3], pair.verdict.word))
    return rows


def _has_interval(pair: Pair) -> bool:
    difference = pair.rows[0].difference
    return difference is not None and difference.low is not None


def overview(groups: Sequence[Group], pairs: Sequence[Pair]) -> str:
    """Format a comparison with one line per group instead of a table per pair."""
    lines = table_lines([SUMMARY_HEADER, *summary(groups, pairs)], right=(1, 2, 3, 5))
    noted = [f"note: {note}" for note in dict.fromkeys(comparison_notes(groups, pairs))]
    without = [pair for pair in pairs if pair.verdict.word == NO_VERDICT and not _has_interval(pair)]
    if len(without) < 2:
        return "\n".join([*noted, "", *lines, *_verdicts(pairs)])
    names = ", ".join(pair.challenger.name for pair in without)
    text = (
        f"{NO_VERDICT.upper()} on {names}: one run gives no spread between seeds; run two more seeds of each and of "
        f"{pairs[0].baseline.name} for an interval, or more for a narrow one."
    )
    with_verdict = [pair for pair in pairs if pair not in without]
    return "\n".join([*noted, "", *lines, *_verdicts(with_verdict), "", textwrap.fill(text, _WIDTH)])


def _verdicts(pairs: Sequence[Pair]) -> list[str]:
    return [f"\n{textwrap.fill(f'{pair.verdict.word.upper()}: {pair.verdict.text}', _WIDTH)}" for pair in pairs]


def group_line(group: Group) -> str:
    """Describe a group in one line: number of runs, seeds and recipes."""
    seeds = [str(run.get("config.seed")) for run in group.runs]
    plural = "s" * (len(seeds) != 1)
    recipes = "+".join(group.runs[0].get("recipes") or []) or "no recipes"
    return f"{group.name}: {len(seeds)} run{plural}, seed{plural} {', '.join(seeds)}; {recipes}"


def comparison_notes(groups: Sequence[Group], pairs: Sequence[Pair]) -> list[str]:
    """Return notes and cautions on the groups and pairs."""
    lines = [f"{group.name}: {note}" for group in groups for note in group.notes]
    for pair in pairs:
        lines += [f"{pair.challenger.name} against {pair.baseline.name}: {caution}" for caution in pair.rules.cautions]
    return lines


def row_cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row, with the columns of HEADER."""
    found, measure = row.difference, f"{row.measure} ({row.unit})"
    if found is None:
        return (measure, _value(row, row.a), _value(row, row.b), "-", row.missing, "")
    show = _percent_change if row.unit == "tokens/s" else lambda value: signed(value, _digits(row))
    return (
        measure,
        _value(row, row.a),
        _value(row, row.b),
        show(found.mean),
        _interval_text(found.low, found.high, show),
        found.method,
    )


def _interval_text(low: float | None, high: float | None, show: Any) -> str:
    return "-" if low is None or high is None else f"{show(low)} to {show(high)}"


def _value(row: Row, value: float | None) -> str:
    if not is_number(value):
        return "-"
    return short_count(value) if row.unit == "tokens/s" else f"{value:.{_digits(row)}f}"


def _digits(row: Row) -> int:
    return 2 if row.unit == "points" else 4


def _percent_change(logarithm: float) -> str:
    return f"{signed(100 * math.expm1(logarithm), 1)} %"


def sentences(pair: Pair) -> list[str]:
    """Return the sentences below the table of a pair: times to loss, and what the difference is worth."""
    return [*(time_sentence(time) for time in pair.times), *([worth_sentence(pair)] if pair.worth is not None else [])]


def worth_sentence(pair: Pair) -> str:
    """Describe the budget with which the baseline reaches the challenger's loss, by its curve over budgets."""
    found = pair.worth
    assert found is not None
    low = "less than the curve shows" if found.low is None else f"{found.low:.2f}"
    high = "more than the curve shows" if found.high is None else f"{found.high:.2f}"
    interval = f"95 % interval {low} to {high}"
    if found.ratio is None:
        return f"no budget on the curve of {pair.baseline.name} gives {pair.challenger.name}'s loss ({interval})"
    saved = 1.0 - 1.0 / found.ratio
    what = (
        f"{percent(abs(saved), 0)} {'less' if saved >= 0.0 else 'more'} of the budget"
        if found.ratio != 1.0
        else "nothing"
    )
    return (
        f"{pair.baseline.name} needs {found.ratio:.2f} times the budget for {pair.challenger.name}'s loss "
        f"({interval}), so {pair.challenger.name} is worth {what}"
    )


def time_sentence(time: TimeToLoss) -> str:
    """Describe when one group reaches the final loss of the other."""
    loss = f"{time.b}'s last {time.kind} loss{' in the loop' * (time.kind == 'held-out')}"
    if time.ratio is None:
        return f"{time.a} does not reach {loss} in {time.runs - time.reached} of {time.runs} runs ({time.axis})"
    text = f"{time.a} reaches {loss} after {percent(math.exp(time.ratio.mean))} of {time.b}'s {time.axis}"
    if time.ratio.low is None or time.ratio.high is None:
        return f"{text} (one run each)"
    return f"{text} (95 % interval {percent(math.exp(time.ratio.low))} to {percent(math.exp(time.ratio.high))})"


def as_json(groups: Sequence[Group], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        "groups": [{"name": g.name, "runs": [str(run.path) for run in g.runs], "notes": g.notes} for g in groups],
        "comparisons": [
            {
                "challenger": pair.challenger.name,
                "baseline": pair.baseline.name,
                "refusals": pair.rules.refusals,
                "cautions": pair.rules.cautions,
                "rows": [asdict(row) for row in pair.rows],
                "time_to_loss": [asdict(time) for time in pair.times],
                "verdict": asdict(pair.verdict),
                "worth": None if pair.worth is None else asdict(pair.worth),
            }
            for pair in pairs
        ],
    }
