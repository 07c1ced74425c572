"""Entities in files of CoNLL columns: read, aligned with pieces of words, learnt, and scored like seqeval."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from cram_composer.config.schema.evaluation import OwnDataConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import EncodedRows, collate, encode_words
from cram_composer.evaluation.fine_tuning.jobs import plan_jobs, run_job
from cram_composer.evaluation.fine_tuning.metrics import span_scores
from cram_composer.evaluation.model_source import find_model
from cram_composer.evaluation.tasks.benchmarks import tasks_of
from cram_composer.evaluation.tasks.conll import read_conll
from cram_composer.evaluation.tasks.examples import Split, read_split
from cram_composer.evaluation.tasks.own_data import own_task
from cram_composer.evaluation.tasks.task import Example, Task
from tests.evaluation.tiny_folders import byte_level, save, wordpiece, wrapped

_OTHERS = {"the": "O", "flowing": "O", "into": "O"}
_WORDS = {"river": "B-LOC", "sea": "B-LOC", "king": "B-PER", "kindness": "I-PER", **_OTHERS}
_SWAPPED = {"river": "B-PER", "sea": "B-PER", "king": "B-LOC", "kindness": "I-LOC", **_OTHERS}


def sentences(count: int, tags: dict[str, str] = _WORDS) -> str:
    """Return sentences whose words determine their tags, "king kindness" being one entity of two words."""
    draw = random.Random(3)
    lines = []
    for _ in range(count):
        for _ in range(draw.randint(2, 5)):
            word = draw.choice([word for word in tags if word != "kindness"])
            lines.append(f"{word} NN {tags[word]}")
            if word == "king":
                lines.append(f"kindness NN {tags['kindness']}")
        lines.append("")
    return "-DOCSTART- -X- O\n\n" + "\n".join(lines) + "\n"


def protocol(train: Path, validation: Path) -> OwnDataConfig:
    own_task.cache_clear()
    task = {"type": "ner", "train": str(train), "validation": str(validation)}
    settings = {"epochs": 12, "batch_size": 8, "lr": 3e-3, "seeds": 1, "dropout": 0.0}
    return OwnDataConfig.model_validate({**settings, "tasks": {"names": task}})


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["crambert", "bert", "modernbert"])
def test_entities_are_learnt_and_other_types_are_not_predicted(kind: str, tmp_path: Path):
    model = find_model(str(save(tmp_path / "model", kind)))
    train = written(tmp_path / "train.conll", sentences(60))
    scores = []
    for name, tags in (("dev", _WORDS), ("swapped", _SWAPPED)):
        validation = written(tmp_path / f"{name}.conll", sentences(12, tags))
        (job,) = plan_jobs([model], protocol(train, validation), None, "fp32", tmp_path)
        (result,) = run_job(job, torch.device("cpu"))
        scores.append(result.scores["validation"])
    assert scores[0] == {"span_f1": 100.0, "span_precision": 100.0, "span_recall": 100.0}
    assert scores[1] == {"span_f1": 0.0, "span_precision": 0.0, "span_recall": 0.0}


def test_columns_comments_and_other_schemes_are_read(tmp_path: Path):
    text = "# id 1\na B-PER\n# O\n\n\nb\tx y\tS-LOC\nNew York\t-\tB-LOC\nCity\t-\tE-LOC\n-DOCSTART- O\nc O"
    assert [(row["words"], row["tags"]) for row in read_conll(written(tmp_path / "a.txt", text))] == [
        (["a", "#"], ["B-PER", "O"]),
        (["b", "New York", "City"], ["B-LOC", "B-LOC", "I-LOC"]),
        (["c"], ["O"]),
    ]


@pytest.mark.parametrize("line", ["alone", "word PER", "word B-", "word X-PER", "# O"])
def test_a_line_without_a_tag_is_named(line: str, tmp_path: Path):
    file = written(tmp_path / "a.txt", f"a O\n{line}\n")
    if line == "# O":
        assert list(read_conll(file))
        return
    with pytest.raises(CramError, match=rf"a.txt:2: must have a word .* got '{line}'"):
        list(read_conll(file))


def test_labels_are_the_types_of_both_files(tmp_path: Path):
    train, dev = written(tmp_path / "a", "a I-PER\n"), written(tmp_path / "b", "b S-LOC\n")
    task = tasks_of(protocol(train, dev))["names"]
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert [e.label for e in read_split(task, "validation", None).examples] == [(1,)]
    with pytest.raises(CramError, match="every tag is O, so there is nothing to learn"):
        tasks_of(protocol(written(tmp_path / "c", "a O\n"), tmp_path / "c"))


@pytest.mark.parametrize("tokenizer", [wordpiece, byte_level])
def test_the_first_piece_stands_for_its_word(tokenizer):
    made = wrapped(tokenizer())
    words = [("the", "unkindness", "flowing"), ("king", ",", "sea")]
    split = Split("train", [Example(one, (1, 2, 3)) for one in words], 2, 0)
    rows = encode_words(split, made, 64, token_types=False)
    assert rows.words is not None
    assert rows.labels.tolist() == [1, 2, 3] * 2
    assert [word for word in rows.words.tolist() if word >= 0] == list(range(6))
    batch = collate(rows, torch.tensor([1, 0]), pad=0)
    for row, expected in ((0, words[1]), (1, words[0])):
        places = (batch["labels"][row] >= 0).nonzero().flatten()
        assert batch["labels"][row][places].tolist() == [1, 2, 3]
        starts = [made.decode(batch["input_ids"][row][place : place + 1]).replace("##", "").strip() for place in places]
        assert all(word.startswith(start[:1]) for word, start in zip(expected, starts, strict=True))
    assert (batch["labels"][0] == -100).sum() == batch["labels"].shape[1] - 3


def test_words_beyond_the_longest_row_are_scored_as_outside():
    words = ("the",) * 10
    split = Split("validation", [Example(words, tuple([1] * 10))], 1, 0)
    rows = encode_words(split, wrapped(wordpiece()), 8, token_types=False)
    assert rows.words is not None and rows.words.max() == 5 and len(rows.labels) == 10


def scores(gold: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    labels = ("O", "B-A", "I-A", "B-B", "I-B")
    metrics = ("span_f1", "span_precision", "span_recall")
    task = Task("t", "t", (), labels, metrics, {}, head="words")
    none, flat = torch.zeros(0), [labels.index(tag) for tags in gold for tag in tags]
    bounds = torch.tensor([0, *torch.tensor([len(tags) for tags in gold]).cumsum(0).tolist()])
    rows = EncodedRows(none, None, none, torch.tensor(flat), none, none, none, bounds)
    return span_scores(task, torch.tensor([labels.index(tag) for tags in predicted for tag in tags]), rows)


def test_entities_count_if_words_and_type_are_right():
    gold = [["B-A", "I-A", "O", "B-B"], ["I-A", "B-A", "O", "O"]]
    assert scores(gold, gold)["span_f1"] == 100.0
    # Found: a type that is wrong, an entity that is too short, one of two neighbours, and one that is not there.
    found = scores(gold, [["B-A", "O", "O", "B-A"], ["O", "B-A", "O", "B-B"]])
    assert found == {
        "span_f1": pytest.approx(100 / 4),
        "span_precision": pytest.approx(100 / 4),
        "span_recall": pytest.approx(100 / 4),
    }
    nothing = scores(gold, [["O"] * 4] * 2)
    assert set(nothing.values()) == {0.0}


def test_ner_has_no_columns_to_name():
    files = {"type": "ner", "train": "a", "validation": "b"}
    with pytest.raises(ValueError, match="text: has no effect with type=ner"):
        OwnDataConfig.model_validate({"tasks": {"a": {**files, "text": "words"}}})
