"""Rows of SuperGLUE's tasks with the hub's columns."""

from __future__ import annotations

from typing import Any

from cram_composer.evaluation.tasks.superglue import SUPERGLUE


def superglue_rows(task: str, count: int = 4) -> list[dict[str, Any]]:
    """Return `count` rows; every second one is the other answer to the same question."""
    made = []
    for number in range(count):
        row: dict[str, Any] = {column: f"the {column} {number}" for column in SUPERGLUE[task].texts}
        row |= {"label": number % len(SUPERGLUE[task].labels), "idx": number}
        if task == "copa":
            row["question"] = ("cause", "effect")[number % 2]
        elif task == "multirc":
            row["idx"] = {"paragraph": number // 4, "question": number // 2, "answer": number}
        elif task == "record":
            del row["label"]
            row |= {
                "query": "then @placeholder saw the sea",
                "entities": ["the King", "a River"],
                "answers": ["King!", "the old king"],
            }
        elif task == "wsc":
            row |= {"text": "the king saw the sea before he slept", "span2_index": 6, "span2_text": "he"}
        made.append(row)
    return made
