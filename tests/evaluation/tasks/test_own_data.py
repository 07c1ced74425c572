"""A user's own files: every format and kind of label, learning from them, and one-line errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from cram_composer.cli import main
from cram_composer.config.schema.evaluation import OwnDataConfig, OwnTaskConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.jobs import plan_jobs, run_job
from cram_composer.evaluation.fine_tuning.results import read_results
from cram_composer.evaluation.model_source import find_model
from cram_composer.evaluation.tasks.benchmarks import tasks_of
from cram_composer.evaluation.tasks.examples import read_split
from cram_composer.evaluation.tasks.own_data import own_task
from cram_composer.evaluation.tasks.task import Example, Task
from tests.models.tiny_models import save_tokenizer, tiny_model

_MOODS = {"king": "happy", "sea": "sad", "river": "so-so"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(made)
    return save_tokenizer(made)


def reviews(count: int, labels: dict[str, Any] = _MOODS) -> list[dict[str, Any]]:
    """Return rows of which one word, of three, determines the label."""
    words, fillers = list(labels), ["the", "a", "born into", 'flows, "into"\nthe']
    return [
        {"review": f"{fillers[at % 4]} {words[at % 3]} {fillers[at // 3 % 4]}", "mood": labels[words[at % 3]]}
        for at in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def task(train: Path, validation: Path | None = None, **changes: Any) -> Task:
    files = {"train": str(train), "validation": str(validation or train), "text": "review", "label": "mood"}
    own_task.cache_clear()
    return own_task("mine", OwnTaskConfig.model_validate({**files, **changes}).model_dump_json())


def protocol(train: Path, validation: Path, **changes: Any) -> OwnDataConfig:
    files = OwnTaskConfig(train=str(train), validation=str(validation), text="review", label="mood", **changes)
    settings = {"epochs": 16, "batch_size": 8, "lr": 3e-3, "seeds": 1, "dropout": 0.0}
    return OwnDataConfig.model_validate({**settings, "tasks": {"mine": files.model_dump()}})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_examples(suffix: str, tmp_path: Path):
    rows = [row | {"review": row["review"].replace("\n", " ").replace('"', "")} for row in reviews(9)]
    file = write(tmp_path / f"train{suffix}", rows)
    found = task(file)
    assert found.labels == ("happy", "sad", "so-so")
    split = read_split(found, "train", None)
    assert split.examples == [Example((row["review"],), found.labels.index(row["mood"])) for row in rows]
    assert split.is_complete and split.rows == 9


def test_quoted_text_of_a_csv_file_may_span_lines(tmp_path: Path):
    rows = reviews(12)
    split = read_split(task(write(tmp_path / "train.csv", rows)), "train", None)
    assert [example.texts for example in split.examples] == [(row["review"],) for row in rows]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 9, -1], ("-1", "9", "10")),
        (["b", "a", "a"], ("a", "b")),
        ([True, False, True], ("false", "true")),
        ([1.0, 0.0, 1.0], ("0", "1")),
    ],
)
def test_classes_are_sorted_by_number_or_by_name(labels: list, names: tuple[str, ...], tmp_path: Path):
    file = write(tmp_path / "train.parquet", [{"review": "a", "mood": label} for label in labels])
    assert task(file).labels == names


def test_classes_are_learnt_and_permuted_ones_are_not_predicted(model: Path, tmp_path: Path):
    permuted = dict(zip(_MOODS, ["sad", "so-so", "happy"], strict=True))
    train = write(tmp_path / "train.csv", reviews(48))
    right = write(tmp_path / "dev.csv", reviews(24)[12:])
    wrong = write(tmp_path / "permuted.csv", reviews(24, permuted)[12:])

    def scores(validation: Path) -> dict[str, float]:
        (job,) = plan_jobs([find_model(str(model))], protocol(train, validation), None, "fp32", tmp_path)
        (result,) = run_job(job, torch.device("cpu"))
        return result.scores["validation"]

    assert min(scores(right).values()) == 100.0
    assert max(scores(wrong).values()) == 0.0


def test_numbers_of_any_scale_are_learnt(model: Path, tmp_path: Path):
    numbers = {"king": 900.5, "sea": 1000.0, "river": 1400.0}
    train, validation = (
        write(tmp_path / name, reviews(count, numbers)) for name, count in (("a.csv", 48), ("b.csv", 12))
    )
    (job,) = plan_jobs([find_model(str(model))], protocol(train, validation, type="regression"), None, "fp32", tmp_path)
    (result,) = run_job(job, torch.device("cpu"))
    assert result.scores["validation"]["pearson"] > 95.0
    assert result.train_loss < 0.1  # in units of the variance of the labels


def test_pairs_of_texts(tmp_path: Path):
    rows = [{"review": "a", "reply": "b", "mood": 0}, {"review": "c", "reply": "d", "mood": 1}]
    found = task(write(tmp_path / "train.jsonl", rows), text_pair="reply")
    assert [example.texts for example in read_split(found, "train", None).examples] == [("a", "b"), ("c", "d")]


def test_one_command_scores_resumes_and_writes_a_table(model, tmp_path, capsys):
    folder = tmp_path / "moods"
    write(folder / "train.csv", reviews(24))
    write(folder / "dev.csv", reviews(12))
    files = ["--train", folder / "train.csv", "--validation", folder / "dev.csv", "--text", "review", "--label", "mood"]
    arguments = [model, *files, "--output", tmp_path / "out", "--seeds", 2, "--set", "epochs=1"]
    command = [*map(str, ["eval", *arguments]), "--device", "cpu", "--jobs", "2"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert "moods acc" in table and "moods F1" in table and "nine-number" not in table
    results = read_results(tmp_path / "out" / "results.jsonl")
    assert [(r.benchmark, r.task, r.seed, r.rows) for r in sorted(results, key=lambda r: r.seed)] == [
        ("own-data", "moods", seed, {"train": 24, "validation": 12}) for seed in (1, 2)
    ]
    assert (tmp_path / "out" / "own-data-moods.json").is_file()
    assert main(command) == 0
    again = capsys.readouterr()
    assert again.out == table and "2 of 2 jobs are already in the results" in again.err
    write(folder / "dev.csv", reviews(9))
    own_task.cache_clear()
    (job, *_) = plan_jobs(
        [find_model(str(model))], protocol(folder / "train.csv", folder / "dev.csv"), None, "fp32", tmp_path
    )
    assert job.keys[0] not in {result.key for result in results}


def test_several_tasks_in_a_protocol(tmp_path: Path):
    train = write(tmp_path / "train.jsonl", reviews(6))
    one = {"train": str(train), "validation": str(train), "text": "review", "label": "mood"}
    both = OwnDataConfig.model_validate(
        {"tasks": {"a": one, "b": one | {"text": "mood"}}, "overrides": {"b": {"lr": 1}}}
    )
    assert [task.texts for task in tasks_of(both).values()] == [("review",), ("mood",)]
    jobs = plan_jobs([find_model("bert-base-uncased")], both, None, "fp32", tmp_path)
    assert [(job.task.name, job.settings.lr) for job in jobs[::5]] == [("a", 4e-5), ("b", 1.0)]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"review": "a", "mood": "x"}], {}, "every 'mood' is 'x', so there is nothing to learn"),
        ([{"review": "a", "mood": 2}] * 2, {"type": "regression"}, "every 'mood' is 2, so there is nothing to learn"),
        ([{"review": "a", "moood": 1}], {}, "row 1: no column 'mood' with the label; its columns: review, moood"),
        ([{"review": "a", "mood": 0.5}], {}, "row 1: label 0.5 is not a class; use type regression"),
        ([{"review": "a", "mood": " "}], {}, "row 1: label must be a text or an integer, got ' '"),
        ([{"review": "a", "mood": "x"}], {"type": "regression"}, "got 'x'; use type classification for classes"),
        ([{"review": "a", "mood": f"{at}.5"} for at in range(30)], {}, "has 30 different numbers; use type regression"),
    ],
)
def test_labels_that_cannot_be_learnt_are_one_line(rows, changes, message, tmp_path):
    with pytest.raises(CramError, match=r"^\S+train.jsonl") as error:
        task(write(tmp_path / "train.jsonl", rows), **changes)
    assert message in str(error.value)


def test_a_label_that_only_the_validation_file_has_is_one_line(tmp_path):
    train = write(tmp_path / "train.jsonl", reviews(3))
    found = task(train, write(tmp_path / "dev.jsonl", [{"review": "a", "mood": "angry"}]))
    with pytest.raises(CramError, match="row 1: mine: label 'angry' is not in the train file, which has happy"):
        read_split(found, "validation", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train", "a.csv"], "--validation: required for your own data"),
        (["--text", "review"], "--text: is for your own data; add --train and --validation"),
        (["--suite", "superglue", "--train", "a.csv"], "--train: is for your own data; remove --suite superglue"),
        (["--suite", "own-data"], "--suite own-data: no tasks; add --train and --validation"),
        (["--train", "none.csv", "--validation", "b.csv"], "none.csv: cannot be read: [Errno 2] No such file"),
        (["--train", "a.docx", "--validation", "b.csv"], "a.docx: unknown type of file; use one of .jsonl"),
        (["--train", "a.csv", "--validation", "b.csv", "--type", "clasification"], "did you mean 'classification'?"),
        (["--train", "a.csv", "--validation", "b.csv", "--data", "."], "--data: has no effect with your own files"),
        (["--train", "a.csv", "--validation", "b.csv", "--tasks", "b"], "--tasks: must be one of a, got 'b'"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, message, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", str(model), *arguments, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
