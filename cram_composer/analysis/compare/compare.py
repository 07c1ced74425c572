"""Comparison of two groups of runs: differences with their intervals, and a verdict in words.

Differences are challenger minus baseline: negative is better for losses, positive for scores.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cram_composer.analysis.compare.adjustment import adjust_for_tokens
from cram_composer.analysis.compare.comparability import Comparability, comparability
from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.measures import (
    AXES,
    AXIS_FORMATS,
    Axis,
    Kind,
    bits_per_character,
    common_end,
    curve,
)
from cram_composer.analysis.compare.row_losses import compare_rows
from cram_composer.analysis.compare.statistics import PAIRED, Difference, compare_means, holm
from cram_composer.analysis.compare.time_to_loss import TimeToLoss, same_objective, times_to_loss
from cram_composer.analysis.compare.verdict import FIVE_PERCENT, Row, Verdict, at_level, judge
from cram_composer.analysis.compare.worth import Worth
from cram_composer.analysis.runs.run import RunData
from cram_composer.errors import CramError

# Standard deviation of the GLUE mean between pretrainings of one set-up, see docs/explanation/statistics.md.
GLUE_NOISE = 0.7
_NORMAL = 1.96


@dataclass(frozen=True)
class Pair:
    """Comparison of a challenger with the baseline."""

    challenger: Group
    baseline: Group
    rules: Comparability
    rows: list[Row]
    times: list[TimeToLoss]
    verdict: Verdict
    worth: Worth | None = None  # on a curve of the baseline over budgets, if one is given


def choose_baseline(groups: Sequence[Group], name: str | None) -> Group:
    """Return the named group, by default the first. Raises CramError if it does not exist or is the only group."""
    names = [group.name for group in groups]
    if len(groups) < 2:
        raise CramError(
            f"only one group, {names[0]}: all runs share a configuration; name at least two groups, such as "
            "base='runs/base-*' muon='runs/muon-*'"
        )
    if name is None:
        return groups[0]
    if name not in names:
        raise CramError(f"--baseline {name}: no such group; the groups are {', '.join(names)}")
    return groups[names.index(name)]


def compare(groups: Sequence[Group], baseline: Group, levels: Mapping[str, float] | None = None) -> list[Pair]:
    """Compare every other group with the baseline, with verdicts corrected by Holm's procedure.

    Args:
        groups: to compare.
        baseline: one of them.
        levels: significance level by name of the group, of `looks.look`; default: 5 %.
    """
    pairs = [_compare_pair(group, baseline) for group in groups if group is not baseline]
    levels = levels or {}
    judged = [n for n, pair in enumerate(pairs) if _p_value(pair) is not None]
    for number, holds in zip(judged, holm([_scaled_p_value(pairs[n], levels) for n in judged]), strict=True):
        pair = pairs[number]
        level = levels.get(pair.challenger.name)
        verdict = at_level(pair.verdict, pair.challenger, baseline, pair.rows[0], level, len(judged), holds)
        pairs[number] = replace(pair, verdict=verdict)
    return _with_adjusted_losses(pairs, baseline)


def _with_adjusted_losses(pairs: list[Pair], baseline: Group) -> list[Pair]:
    """Add the difference at equal tokens to pairs whose budget is one of time, so that runs differ in their tokens."""
    timed = [pair for pair in pairs if pair.rules.budget in ("wall-clock", "device-hours") and not pair.rules.refusals]
    groups = [baseline, *(pair.challenger for pair in timed)]
    found = adjust_for_tokens(groups, baseline) if timed else None
    if found is None:
        return pairs
    measure = f"held-out loss, final, adjusted to equal tokens by {found.slope:+.3f} nats per e-fold"
    rows = {name: Row(measure, "nats", difference=each) for name, each in found.differences.items()}
    for number, pair in enumerate(pairs):
        if (name := pair.challenger.name) in rows:
            pairs[number] = replace(pair, rows=[pair.rows[0], rows[name], *pair.rows[1:]])
    return pairs


def _p_value(pair: Pair) -> float | None:
    difference = pair.rows[0].difference
    return difference.p_value if difference is not None else None


def _scaled_p_value(pair: Pair, levels: Mapping[str, float]) -> float:
    """Return the p-value that at 5 % is what the pair's is at its own level, for Holm's procedure."""
    level = levels.get(pair.challenger.name, FIVE_PERCENT)
    return (_p_value(pair) or 0.0) * FIVE_PERCENT / level if level else math.inf


def _compare_pair(challenger: Group, baseline: Group) -> Pair:
    rules = comparability(challenger, baseline)
    refusal = "; ".join(f"not comparable: {line}" for line in rules.refusals)
    rows = [_final_loss(challenger, baseline, rules, refusal)]
    times: list[TimeToLoss] = []
    if refusal:
        rows += [Row(f"losses at equal {', '.join(AXES)}", "nats", missing=refusal)]
    else:
        rows += [_loss_at_equal(challenger, baseline, kind, axis, rules) for kind in _KINDS for axis in AXES]
        rows += [] if rules.per_character else _over_rows(challenger, baseline, rules)
        rows += [] if rules.per_character else _named_losses(challenger, baseline, rules)
        times = times_to_loss(challenger, baseline) if not rules.in_loop else []
    rows.append(_throughput(challenger, baseline))
    rows += _scores(challenger, baseline, rules)
    return Pair(challenger, baseline, rules, rows, times, judge(challenger, baseline, rows[0], refusal))


_KINDS: tuple[Kind, Kind] = ("held-out", "training")


def _compare_values(
    measure: str, unit: str, a: Group, b: Group, value: Callable[[RunData], float | None], missing: str
) -> Row:
    """Compare the means of a value that every run must have."""
    one, other = ([found for run in group.runs if (found := value(run)) is not None] for group in (a, b))
    if len(one) < len(a.runs) or len(other) < len(b.runs):
        return Row(measure, unit, missing=missing)
    of_a, of_b = a.by_seed(one), b.by_seed(other)
    difference = compare_means(of_a, of_b)
    if isinstance(of_a, dict) and isinstance(of_b, dict):
        # The means that the difference is of: of seeds instead of runs, and only of pairs if it is paired.
        seeds = [of_a.keys() & of_b.keys()] * 2 if difference.method == PAIRED else [of_a.keys(), of_b.keys()]
        one, other = [of_a[seed] for seed in seeds[0]], [of_b[seed] for seed in seeds[1]]
    return Row(measure, unit, statistics.fmean(one), statistics.fmean(other), difference)


def _final_loss(a: Group, b: Group, rules: Comparability, refusal: str) -> Row:
    measure = f"held-out loss, final, at equal {rules.budget or 'budget'}"
    if rules.per_character:
        return _compare_values(
            f"{measure}, per character", "bits per character", a, b, bits_per_character, "not measured"
        )
    if refusal:
        return Row(measure, "nats", missing=refusal)
    return _compare_values(measure, "nats", a, b, lambda run: run.get("metrics.validation_loss"), "not measured")


def _over_rows(a: Group, b: Group, rules: Comparability) -> list[Row]:
    """Return the difference with the interval of the choice of held-out rows; none if rows were not recorded."""
    found = compare_rows(a, b)
    if found is None:
        return []
    measure = f"held-out loss, final, at equal {rules.budget or 'budget'}, {found.difference.runs:,} rows as the sample"
    return [Row(measure, "nats", found.a, found.b, found.difference)]


def _named_losses(a: Group, b: Group, rules: Comparability) -> list[Row]:
    """Compare the final losses of further held-out sets."""
    names = dict.fromkeys(name for run in [*a.runs, *b.runs] for name in run.get("metrics.held_out") or {})
    return [
        _compare_values(
            f"{name}, held-out loss, final, at equal {rules.budget or 'budget'}",
            "nats",
            a,
            b,
            partial(_loss_of_set, name),
            "not measured",
        )
        for name in names
    ]


def _loss_of_set(name: str, run: RunData) -> float | None:
    found: dict[str, Any] = run.get("metrics.held_out") or {}
    return found.get(name, {}).get("loss")


def _loss_at_equal(a: Group, b: Group, kind: Kind, axis: Axis, rules: Comparability) -> Row:
    measure = f"{kind} loss{' in the loop' * (kind == 'held-out')} at equal {axis}"
    if kind == "held-out" and rules.in_loop:
        return Row(measure, "nats", missing=rules.in_loop)
    if kind == "training" and not same_objective(a, b):
        return Row(measure, "nats", missing="not comparable: different training objectives")
    curves = {id(run): curve(run, kind, axis) for run in [*a.runs, *b.runs]}
    point = common_end(list(curves.values()))
    if point is None:
        return Row(measure, "nats", missing="not measured")
    return _compare_values(
        f"{measure}, {AXIS_FORMATS[axis](point)}",
        "nats",
        a,
        b,
        lambda run: curves[id(run)].at(point),
        "the curves do not overlap",
    )


def _throughput(a: Group, b: Group) -> Row:
    row = _compare_values(
        "throughput", "tokens/s", a, b, lambda run: _log(run.get("tokens_per_second")), "not measured"
    )
    if row.a is None or row.b is None:
        return row
    return replace(row, a=math.exp(row.a), b=math.exp(row.b))


def _log(value: Any) -> float | None:
    return math.log(value) if isinstance(value, (int, float)) and value > 0 else None


def _scores(a: Group, b: Group, rules: Comparability) -> list[Row]:
    """Compare scores after fine-tuning."""
    names = dict.fromkeys(
        (protocol, score)
        for run in [*a.runs, *b.runs]
        for protocol, row in run.evaluated.items()
        for score in _scores_of(row)
    )
    return [_score(a, b, protocol, score, rules) for protocol, score in names]


def _scores_of(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the averages of a protocol; if it has none, as for own data, its numbers by title."""
    numbers = {
        number["title"]: {"mean": number["median"], "missing": number["partial"]} for number in row.get("numbers", [])
    }
    return row.get("averages") or numbers


def _score(a: Group, b: Group, protocol: str, score: str, rules: Comparability) -> Row:
    """Compare a score. For an average, the interval is the wider of the spread between seeds and the known noise."""
    measure = f"{protocol}, {score}"
    found = {id(run): _scores_of(run.evaluated.get(protocol, {})).get(score, {}) for run in [*a.runs, *b.runs]}
    have = [Group(g.name, [run for run in g.runs if found[id(run)].get("mean") is not None]) for g in (a, b)]
    if not all(group.runs for group in have):
        return Row(measure, "points", missing="only one of the groups was evaluated")
    if rules.budget is None:
        return Row(measure, "points", missing=f"not comparable: {rules.refusals[0]}")
    if len({tuple(found[id(run)]["missing"]) for group in have for run in group.runs}) > 1:
        return Row(measure, "points", missing="not comparable: different tasks were scored")
    if len({fine_tuning_key(run, protocol) for group in have for run in group.runs}) > 1:
        return Row(measure, "points", missing="not comparable: fine-tuned with different settings or numbers of seeds")
    row = _compare_values(measure, "points", have[0], have[1], lambda run: found[id(run)]["mean"], "not measured")
    assert row.difference is not None
    if not all(run.evaluated[protocol].get("averages") for group in have for run in group.runs):
        return row
    return replace(row, difference=_with_known_noise(row.difference, *(group.seeds for group in have)))


def fine_tuning_key(run: RunData, protocol: str) -> str:
    """Return the deviations of a run's fine-tuning from the protocol, and its seeds, as a key."""
    row = run.evaluated[protocol]
    seeds = [(number.get("task"), sorted(number.get("seeds", {}))) for number in row.get("numbers", [])]
    return json.dumps([row.get("notes"), seeds])


def _with_known_noise(difference: Difference, *seeds: int) -> Difference:
    """Replace the interval by that of the known noise between pretrainings, unless the measured interval is wider."""
    half = _NORMAL * GLUE_NOISE * math.sqrt(sum(1 / count for count in seeds))
    if difference.low is not None and difference.high is not None and difference.high - difference.low > 2 * half:
        return difference
    return replace(
        difference,
        low=difference.mean - half,
        high=difference.mean + half,
        p_value=math.erfc(abs(difference.mean) / half * _NORMAL / math.sqrt(2)),
        method=f"known noise, {GLUE_NOISE} points",
    )
