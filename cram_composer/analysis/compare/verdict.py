"""Verdicts on a pair of groups, in words."""

from __future__ import annotations

from dataclasses import dataclass

from cram_composer.analysis.compare.groups import Group
from cram_composer.analysis.compare.statistics import PAIRED, Difference, detectable_effect, seeds_needed
from cram_composer.config.formatting import signed

FIVE_PERCENT = 0.05
NO_VERDICT = "no verdict"
_NOT_DISTINGUISHABLE = "not distinguishable"


@dataclass(frozen=True)
class Row:
    """One measure of both groups.

    Attributes:
        measure: name of the measure, including the quantity held equal.
        unit: "nats", "bits per character", "tokens/s" or "points".
        a, b: the groups' means, challenger first; None if not measured or not comparable.
        difference: of the means, or of the logarithms for "tokens/s"; None if not measured or not comparable.
        missing: reason why there is no difference.
    """

    measure: str
    unit: str
    a: float | None = None
    b: float | None = None
    difference: Difference | None = None
    missing: str = ""


@dataclass(frozen=True)
class Verdict:
    """Verdict: `word` is better, worse, not distinguishable, no verdict or not comparable; `text` has the numbers."""

    word: str
    text: str


def judge(a: Group, b: Group, row: Row, refusal: str) -> Verdict:
    """Return the verdict on a pair alone, by its first row."""
    found = row.difference
    if found is None:
        return Verdict("not comparable", f"{a.name} and {b.name}: {row.missing or refusal}.")
    if found.low is None or found.high is None or found.spread is None:
        return Verdict(
            NO_VERDICT,
            f"{a.name} against {b.name}: {difference_text(row)}; the spread between seeds is unknown; run two more "
            "seeds of each for an interval, or more for a narrow one.",
        )
    if found.low > 0 or found.high < 0:
        word = "worse" if found.mean > 0 else "better"
        return Verdict(word, f"{a.name} is {word} than {b.name}: {difference_text(row)}.")
    paired = found.method == PAIRED
    seeds = max(found.runs, 2)
    needed = seeds_needed(found.mean, found.spread, paired)
    if needed is None:
        more = "not even a thousand seeds of each would detect a difference of this size"
    else:
        extra = max(needed - found.runs, 1)
        more = (
            f"detecting a difference of this size with 80 % power takes about {max(needed, found.runs + 1)} seeds of "
            f"each, {extra} more"
        )
    least = detectable_effect(found.spread, seeds, paired)
    return Verdict(
        _NOT_DISTINGUISHABLE,
        f"{a.name} and {b.name} are not distinguishable with these seeds: {difference_text(row)}; {more}; "
        f"{seeds} seeds detect {least:.4f} {row.unit} or more.",
    )


def at_level(
    verdict: Verdict, a: Group, b: Group, row: Row, level: float | None, comparisons: int, holds: bool
) -> Verdict:
    """Return the verdict as one of several comparisons, at the level of a look.

    Args:
        verdict: on the pair alone, of `judge`.
        a, b: the pair, challenger first.
        row: the first row of the pair.
        level: significance level of a look at a sweep; None for runs that nobody looked at.
        comparisons: number of comparisons.
        holds: the difference is significant by Holm's procedure at the levels of all comparisons.
    """
    if verdict.word not in ("better", "worse", _NOT_DISTINGUISHABLE):
        return verdict
    if level == 0.0:
        return Verdict(
            NO_VERDICT,
            f"{a.name} against {b.name}: {difference_text(row)}; seeds were added after a look at the planned ones, so "
            "no verdict holds at 5 %. Confirm with seeds that nobody has seen: a sweep in another folder with "
            "first_seed.",
        )
    if verdict.word == _NOT_DISTINGUISHABLE:
        more = (
            ""
            if level is None
            else " This was a look: more seeds than planned go into another folder, with first_seed."
        )
        return Verdict(verdict.word, verdict.text + more)
    if holds:
        return verdict
    corrections = [f"Holm's correction for {comparisons} comparisons at 5 %"] if comparisons > 1 else []
    if level is not None and level < FIVE_PERCENT * 0.999:
        corrections.append(f"a level of {100.0 * level:.2g} % for this look, which came early or after an early one")
    return Verdict(
        _NOT_DISTINGUISHABLE,
        f"{a.name} and {b.name} are not distinguishable after {' and '.join(corrections)}: {difference_text(row)}; the "
        "difference is significant only without.",
    )


def difference_text(row: Row) -> str:
    """Format a difference with its interval and method."""
    found = row.difference
    assert found is not None
    what = f"{row.measure.partition(',')[0]} {signed(found.mean, 4)} {row.unit}"
    if found.low is None or found.high is None:
        return f"{what}, {found.method}"
    how = f"{found.runs} pairs of equal seed" if found.method == PAIRED else found.method
    return f"{what} (95 % interval {signed(found.low, 4)} to {signed(found.high, 4)}, Student's t, {how})"
