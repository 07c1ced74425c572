"""The `card` of a recipe, `recipes/*.yaml`."""

from __future__ import annotations

from typing import Literal

from cram_composer.config.schema.base import Settings, key


class Card(Settings):
    """Header of a recipe: its idea, source, measured effect and cost."""

    kind: Literal["preset", "ingredient"] = key(
        ..., "a preset is a whole published set-up and comes first; an ingredient changes one thing"
    )
    summary: str = key(..., "one sentence: what it changes")
    source: str = key(..., "authors, year, arXiv number, section or table")
    expected: str = key(..., "what the source found, with its numbers")
    measured: str = key(..., "what this project has measured, with seeds and interval, or 'not yet'")
    cost: str = key(..., "time or memory per step, compared with a run without it")
    needs: list[str] = key(list, "recipes that it requires")
    conflicts: dict[str, str] = key(
        dict, "recipe -> why the two exclude each other, other than by setting the same key"
    )
