"""Rows of every task from files of every format; errors are one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from cram_composer.errors import CramError
from cram_composer.evaluation.tasks.benchmarks import find_task
from cram_composer.evaluation.tasks.examples import read_split
from cram_composer.evaluation.tasks.glue import GLUE
from cram_composer.evaluation.tasks.superglue import SUPERGLUE
from cram_composer.evaluation.tasks.task import Example
from tests.evaluation.tasks.superglue_rows import superglue_rows


def rows(task: str, count: int = 4) -> list[dict]:
    found = GLUE[task]
    made = []
    for number in range(count):
        row = {column: f'the {column}, "{number}"' for column in found.texts}
        row["label"] = 1.25 * number if found.is_regression else number % len(found.labels)
        made.append(row | {"idx": number})
    return made


def write(folder: Path, task: str, split: str, suffix: str, given: list[dict]) -> Path:
    path = folder / task / f"{split}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in given)
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(given), path)
    elif suffix == ".tsv":
        listed = ["\t".join(map(str, row.values())) for row in (dict(zip(given[0], given[0], strict=True)), *given)]
        path.write_text("\n".join(listed) + "\n")
    elif suffix == ".jsonl":
        path.write_text(lines)
    else:
        with pyarrow.output_stream(path, compression={".jsonl.zst": "zstd", ".jsonl.gz": "gzip"}[suffix]) as file:
            file.write(lines.encode())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".jsonl.gz", ".tsv", ".parquet"])
@pytest.mark.parametrize("task", GLUE)
def test_every_task_is_read_from_every_format(task: str, suffix: str, tmp_path: Path):
    for split in GLUE[task].sizes:
        write(tmp_path, task, split, suffix, rows(task))
        found = read_split(GLUE[task], split, tmp_path)
        assert found.examples == [
            Example(tuple(row[column] for column in GLUE[task].texts), row["label"]) for row in rows(task)
        ]
        assert found.rows == 4
        assert not found.is_complete
        assert found.official == GLUE[task].sizes[split]


def test_a_whole_split_is_known_by_its_size(tmp_path: Path):
    write(tmp_path, "wnli", "validation", ".jsonl", rows("wnli", 71))
    assert read_split(GLUE["wnli"], "validation", tmp_path).is_complete


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("rte", {"sentence2": None}, "row 2: RTE needs the columns sentence1, sentence2, label; missing: sentence2"),
        ("cola", {"label": None}, "row 2: CoLA needs the columns sentence, label; missing: label (found: sentence"),
        ("cola", {"sentence": 3}, "row 2: column 'sentence' holds int, not text"),
        ("cola", {"label": 2}, "row 2: CoLA: label must be one of 0 (unacceptable), 1 (acceptable), got 2"),
        ("sst2", {"label": -1}, "row 2: SST-2: label must be one of 0 (negative), 1 (positive), got -1"),
        ("mnli", {"label": 0.5}, "row 2: MNLI: label must be one of 0 (entailment), 1 (neutral), 2 (contr"),
        ("qnli", {"label": "entailment"}, "row 2: QNLI: label must be one of 0 (entailment), 1 (not_en"),
        ("stsb", {"label": 5.5}, "row 2: STS-B: label must be a number from 0 to 5, got 5.5"),
        ("stsb", {"label": "high"}, "row 2: STS-B: label must be a number from 0 to 5, got 'high'"),
    ],
)
def test_a_wrong_row_is_one_line(task: str, change: dict, message: str, tmp_path: Path):
    given = rows(task)
    given[1] |= change
    path = write(tmp_path, task, "train", ".jsonl", given)
    with pytest.raises(CramError) as refused:
        read_split(GLUE[task], "train", tmp_path)
    assert str(refused.value).startswith(f"{path}, {message}") and "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", [".jsonl.zst", ".parquet"])
@pytest.mark.parametrize("task", SUPERGLUE)
def test_superglue_is_read_as_examples(task: str, suffix: str, tmp_path: Path):
    split = next(iter(SUPERGLUE[task].sizes))
    write(tmp_path, task, split, suffix, superglue_rows(task))
    found = read_split(SUPERGLUE[task], split, tmp_path)
    assert found.rows == 4
    assert {example.label for example in found.examples} == set(range(len(SUPERGLUE[task].labels)))
    assert {len(example.texts) for example in found.examples} == {2}


def test_superglue_examples_match_their_rows(tmp_path: Path):
    def examples(task: str) -> list[Example]:
        write(tmp_path, task, "train", ".jsonl", superglue_rows(task, 2))
        return read_split(SUPERGLUE[task] if task != "axg" else AXG, "train", tmp_path).examples

    assert examples("copa") == [
        Example(("the premise 0 What was the cause?", "the choice1 0"), 1, 0),
        Example(("the premise 0 What was the cause?", "the choice2 0"), 0, 0),
        Example(("the premise 1 What happened as a result?", "the choice1 1"), 0, 1),
        Example(("the premise 1 What happened as a result?", "the choice2 1"), 1, 1),
    ]
    assert examples("multirc") == [
        Example(("the paragraph 0", "the question 0 the answer 0"), 0, (0, 0)),
        Example(("the paragraph 1", "the question 1 the answer 1"), 1, (0, 0)),
    ]
    assert examples("record")[:2] == [
        Example(("the passage 0", "then the King saw the sea"), 1, 0, 1.0),  # "King" without article and punctuation
        Example(("the passage 0", "then a River saw the sea"), 0, 0, 0.0),
    ]
    assert examples("wic")[0].texts == ("the word 0: the sentence1 0", "the sentence2 0")
    assert examples("wsc")[0].texts == ("the king saw the sea before *he* slept", "the span1_text 0")
    assert [example.group for example in examples("axg")] == [0, 0]


AXG = dataclasses.replace(SUPERGLUE["axg"], sizes={"train": 2})


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("copa", {"question": "why"}, "row 2: COPA: column 'question' must be 'cause' or 'effect', got 'why'"),
        ("copa", {"label": 2}, "row 2: COPA: label must be one of 0 (choice1), 1 (choice2), got 2"),
        ("multirc", {"idx": 4}, "row 2: MultiRC: column 'idx' must have the numbers 'paragraph' and 'question'"),
        ("record", {"entities": "King"}, "row 2: ReCoRD: column 'entities' must be a list of texts"),
        (
            "record",
            {"answers": None},
            "row 2: ReCoRD needs the columns passage, query, entities, answers",
        ),
        ("record", {"query": "then she"}, "row 2: ReCoRD: column 'query' has no @placeholder"),
        ("wsc", {"span2_index": 8}, "row 2: WSC: column 'span2_index' must be the index of a word"),
        ("boolq", {"label": True}, ""),
    ],
)
def test_a_wrong_row_of_superglue_is_one_line(task: str, change: dict, message: str, tmp_path: Path):
    given = superglue_rows(task)
    given[1] |= change
    path = write(tmp_path, task, "train", ".jsonl", given)
    if not message:  # raw files have true and false where the hub has 1 and 0
        assert read_split(SUPERGLUE[task], "train", tmp_path).examples[1].label == 1
        return
    with pytest.raises(CramError) as refused:
        read_split(SUPERGLUE[task], "train", tmp_path)
    assert str(refused.value).startswith(f"{path}, {message}") and "\n" not in str(refused.value)


def test_missing_files_are_one_line(tmp_path: Path):
    path = write(tmp_path, "cola", "train", ".jsonl", rows("cola"))
    with pytest.raises(CramError, match=r"rte: no such folder; found in .*: cola$"):
        read_split(GLUE["rte"], "train", tmp_path)
    with pytest.raises(CramError, match=r"cola: no split 'validation' \(validation.jsonl, .*\); found: train.jsonl$"):
        read_split(GLUE["cola"], "validation", tmp_path)
    with pytest.raises(CramError, match=r"no such folder; found in .*nowhere: nothing$"):
        read_split(GLUE["cola"], "train", tmp_path / "nowhere")
    path.write_text("{\n")
    with pytest.raises(CramError, match=r"train.jsonl:1: not valid JSON"):
        read_split(GLUE["cola"], "train", tmp_path)
    path.write_text("\n")
    with pytest.raises(CramError, match=r"train.jsonl: has no rows"):
        read_split(GLUE["cola"], "train", tmp_path)
    path.rename(path.with_suffix(".parquet"))
    with pytest.raises(CramError, match=r"train.parquet: cannot be read: "):
        read_split(GLUE["cola"], "train", tmp_path)


def test_an_unknown_task_is_one_line():
    with pytest.raises(CramError, match=r"^--tasks: must be one of cola, .*, got 'stb'; did you mean 'stsb'\?$"):
        find_task("stb", "--tasks")
