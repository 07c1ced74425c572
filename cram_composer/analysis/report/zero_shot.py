"""Tables of scores without fine-tuning, by the kind of protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cram_composer.analysis.html.tables import Table
from cram_composer.analysis.runs.run import RunData
from cram_composer.config.formatting import count, decimal, percent


def zero_shot_tables(run: RunData) -> list[tuple[Table, list[str]]]:
    """Table and notes of each zero-shot protocol of the run."""
    return [
        (_TABLES[row["kind"]](name, row), row["notes"])
        for name, row in run.evaluated.items()
        if row.get("kind") in _TABLES
    ]


def _minimal_pairs(name: str, row: dict[str, Any]) -> Table:
    """Paradigms, then their means by field and linguistics_term, then the overall mean."""
    paradigms = [
        (paradigm, decimal(found["accuracy"], 1), count(found["pairs"])) for paradigm, found in row["paradigms"].items()
    ]
    margins = row.get("margins") or {"overall": None, "groups": {}}  # older evaluations have none
    means = [
        (f"{key}: {value}".replace("_", " "), _with_margin(accuracy, margins["groups"].get(key, {}).get(value)), "")
        for key, of_key in row["groups"].items()
        for value, accuracy in of_key.items()
    ]
    means.append(("mean over paradigms", _with_margin(row["overall"], margins["overall"]), ""))
    header = ("Paradigm", "Accuracy, %", "Pairs")
    caption = f"{name}: minimal pairs by {row['score']}, chance is 50 %; ± half of the 95 % interval over pairs"
    return Table(caption, header, [*paradigms, *means], numeric=(1, 2), total_rows=len(means))


def _with_margin(value: Any, margin: Any) -> str:
    return decimal(value, 1) if margin is None else f"{decimal(value, 1)} ± {decimal(margin, 1)}"


def _masked_words(name: str, row: dict[str, Any]) -> Table:
    found = row["text"] or {}
    rows = [
        ("bits per character", decimal(found.get("bits_per_character"), 4)),
        ("95 % interval over windows", f"{decimal(found.get('low'), 4)} to {decimal(found.get('high'), 4)}"),
        ("nats per masked piece", decimal(found.get("nats_per_piece"))),
        ("unknown characters", percent(found.get("unknown_share"), 2)),
        ("masked words", count(found.get("words"))),
        ("characters in them", count(found.get("characters"))),
        ("pieces in them", count(found.get("pieces"))),
        ("windows", count(found.get("windows"))),
    ]
    return Table(f"{name}: masked words of {row['data']}", ("", "Value"), rows, numeric=(1,))


_TABLES: dict[str, Callable[[str, dict[str, Any]], Table]] = {
    "minimal-pairs": _minimal_pairs,
    "masked-words": _masked_words,
}
