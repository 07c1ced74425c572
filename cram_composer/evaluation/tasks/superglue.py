"""The tasks of SuperGLUE (Wang et al. 2019, arXiv 1905.00537) as classification of one or two texts.

Other tasks are converted row by row: every alternative of COPA, every answer of MultiRC and every entity of ReCoRD is
classified as right or wrong, and the one with the highest odds of being right is chosen. The paper's own baselines read
the target words of WiC and WSC from their positions; here they are written into the texts.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Mapping
from typing import Any

from cram_composer.evaluation.tasks.task import Example, Task, class_label

_FALSE_TRUE = ("false", "true")
_ENTAILMENT = ("entailment", "not_entailment")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PLACEHOLDER = "@placeholder"


def _copa(row: Mapping[str, Any], number: int) -> list[Example]:
    questions = {"cause": "What was the cause?", "effect": "What happened as a result?"}
    if row["question"] not in questions:
        raise ValueError(f"column 'question' must be 'cause' or 'effect', got {row['question']!r}")
    right = class_label(row["label"], ("choice1", "choice2"))
    premise = f"{row['premise']} {questions[row['question']]}"
    return [Example((premise, row[f"choice{at + 1}"]), int(at == right), number) for at in range(2)]


def _multirc(row: Mapping[str, Any], number: int) -> list[Example]:
    place = row["idx"]
    if not isinstance(place, Mapping) or not {"paragraph", "question"} <= place.keys():
        raise ValueError("column 'idx' must have the numbers 'paragraph' and 'question'")
    question = f"{row['question']} {row['answer']}"
    group = (place["paragraph"], place["question"])
    return [Example((row["paragraph"], question), class_label(row["label"], _FALSE_TRUE), group)]


def _record(row: Mapping[str, Any], number: int) -> list[Example]:
    entities, answers = (_list_of_texts(row, column) for column in ("entities", "answers"))
    if _PLACEHOLDER not in row["query"]:
        raise ValueError(f"column 'query' has no {_PLACEHOLDER}")
    made = []
    for entity in dict.fromkeys(entities):
        query = row["query"].replace(_PLACEHOLDER, entity)
        right = any(_normalize_answer(entity) == _normalize_answer(answer) for answer in answers)
        credit = max((_token_f1(entity, answer) for answer in answers), default=0.0)
        made.append(Example((row["passage"], query), int(right), number, credit))
    return made


def _wic(row: Mapping[str, Any], number: int) -> list[Example]:
    return [Example((f"{row['word']}: {row['sentence1']}", row["sentence2"]), class_label(row["label"], _FALSE_TRUE))]


def _wsc(row: Mapping[str, Any], number: int) -> list[Example]:
    words, place = row["text"].split(), str(row["span2_index"])
    if not place.isdigit() or int(place) >= len(words):
        raise ValueError(f"column 'span2_index' must be the index of a word of the text, got {place!r}")
    at = int(place)
    marked = " ".join([*words[:at], f"*{words[at]}*", *words[at + 1 :]])
    return [Example((marked, row["span1_text"]), class_label(row["label"], _FALSE_TRUE))]


def _axg(row: Mapping[str, Any], number: int) -> list[Example]:
    # Rows come in pairs that differ only in the gender of a pronoun.
    return [Example((row["premise"], row["hypothesis"]), class_label(row["label"], _ENTAILMENT), number // 2)]


def _list_of_texts(row: Mapping[str, Any], column: str) -> list[str]:
    found = row[column]
    if not isinstance(found, list) or not found or not all(isinstance(item, str) for item in found):
        raise ValueError(f"column '{column}' must be a list of texts")
    return found


def _normalize_answer(text: str) -> str:
    """Normalize an answer for comparison as in ReCoRD: lower case, no punctuation, articles or repeated spaces."""
    kept = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", kept).split())


def _token_f1(found: str, answer: str) -> float:
    """Return the harmonic mean of precision and recall of words (Zhang et al. 2018, arXiv 1810.12885, section 5)."""
    words, right = _normalize_answer(found).split(), _normalize_answer(answer).split()
    shared = sum((collections.Counter(words) & collections.Counter(right)).values())
    return 2.0 * shared / (len(words) + len(right)) if shared else 0.0


def _task(name: str, title: str, texts: tuple[str, ...], labels: tuple[str, ...], **more: Any) -> Task:
    # The data set is a script, which `datasets` no longer runs; the hub's conversion is on a branch.
    return Task(name, title, texts, labels, hub="aps/super_glue", hub_revision="refs/convert/parquet", **more)


SUPERGLUE: dict[str, Task] = {
    task.name: task
    for task in (
        _task(
            "boolq",
            "BoolQ",
            ("question", "passage"),
            _FALSE_TRUE,
            metrics=("accuracy",),
            sizes={"train": 9427, "validation": 3270},
        ),
        _task(
            "cb",
            "CB",
            ("premise", "hypothesis"),
            ("entailment", "contradiction", "neutral"),
            metrics=("accuracy", "macro_f1"),
            sizes={"train": 250, "validation": 56},
        ),
        _task(
            "copa",
            "COPA",
            ("premise", "choice1", "choice2", "question"),
            _FALSE_TRUE,
            metrics=("choice_accuracy",),
            sizes={"train": 400, "validation": 100},
            other_columns=("label",),
            make_examples=_copa,
        ),
        _task(
            "multirc",
            "MultiRC",
            ("paragraph", "question", "answer"),
            _FALSE_TRUE,
            metrics=("f1", "exact_match"),
            sizes={"train": 27243, "validation": 4848},
            other_columns=("idx", "label"),
            make_examples=_multirc,
        ),
        _task(
            "record",
            "ReCoRD",
            ("passage", "query"),
            _FALSE_TRUE,
            metrics=("choice_credit", "choice_accuracy"),
            sizes={"train": 100730, "validation": 10000},
            other_columns=("entities", "answers"),
            make_examples=_record,
        ),
        _task(
            "rte",
            "RTE",
            ("premise", "hypothesis"),
            _ENTAILMENT,
            metrics=("accuracy",),
            sizes={"train": 2490, "validation": 277},
        ),
        _task(
            "wic",
            "WiC",
            ("word", "sentence1", "sentence2"),
            _FALSE_TRUE,
            metrics=("accuracy",),
            sizes={"train": 5428, "validation": 638},
            other_columns=("label",),
            make_examples=_wic,
        ),
        _task(
            "wsc",
            "WSC",
            ("text", "span1_text"),
            _FALSE_TRUE,
            metrics=("accuracy",),
            sizes={"train": 554, "validation": 104},
            other_columns=("span2_index", "label"),
            make_examples=_wsc,
            hub_name="wsc.fixed",
        ),
        _task(
            "axb",
            "AX-b",
            ("sentence1", "sentence2"),
            _ENTAILMENT,
            metrics=("matthews",),
            sizes={"test": 1104},
            scored=("test",),
            trained_on="rte",
        ),
        _task(
            "axg",
            "AX-g",
            ("premise", "hypothesis"),
            _ENTAILMENT,
            metrics=("accuracy", "parity"),
            sizes={"test": 356},
            scored=("test",),
            trained_on="rte",
            other_columns=("label",),
            make_examples=_axg,
        ),
    )
}
