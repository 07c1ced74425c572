"""`cram eval` runs all tasks and seeds, resumes, and continues after a job's failure."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from cram_composer.cli import main
from cram_composer.config.schema.evaluation import ProtocolConfig, TaskSettingsConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.execution import threads_per_job
from cram_composer.evaluation.fine_tuning.jobs import plan_jobs, plan_selection, select_settings
from cram_composer.evaluation.fine_tuning.results import Result, read_results
from cram_composer.evaluation.fine_tuning.suite import _pending_jobs
from cram_composer.evaluation.fine_tuning.table import console_table, model_row
from cram_composer.evaluation.model_source import find_model
from cram_composer.evaluation.tasks.examples import read_split
from cram_composer.evaluation.tasks.glue import GLUE
from cram_composer.evaluation.tasks.superglue import SUPERGLUE
from tests.evaluation.tasks.superglue_rows import superglue_rows
from tests.models.tiny_models import save_tokenizer, tiny_model

_ROWS = 12
_WORDS = ("the", "river", "king", "sea", "a")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(made)
    return save_tokenizer(made)


@pytest.fixture(scope="module")
def superglue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return all ten tasks with the hub's columns, a few rows each."""
    folder = tmp_path_factory.mktemp("superglue")
    for task in SUPERGLUE.values():
        for split in task.sizes:
            path = folder / task.name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(json.dumps(row) for row in superglue_rows(task.name, _ROWS)))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return all nine tasks with the hub's columns, a few rows each."""
    folder = tmp_path_factory.mktemp("glue")
    for task in GLUE.values():
        for split in task.sizes:
            rows = []
            for number in range(_ROWS):
                text = dict.fromkeys(task.texts, f"{_WORDS[number % 5]} {_WORDS[number % 3]}")
                label = number / 3 if task.is_regression else number % len(task.labels)
                rows.append(json.dumps({**text, "label": label, "idx": number}))
            path = folder / task.name / f"{split}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("\n".join(rows))
    return folder


def eval_(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    arguments = arguments if "--suite" in arguments else (*arguments, "--suite", "glue")
    jobs = [] if "--slurm" in arguments else ["--jobs", "2"]
    status = main(["eval", *map(str, arguments), "--device", "cpu", *jobs])
    return status, *capsys.readouterr()


def test_nine_tasks_in_one_command_and_nothing_to_do_the_second_time(model, data, tmp_path, capsys):
    arguments = [model, f"untrained:{model}", "--data", data, "--output", tmp_path, "--seeds", 1, "--set", "epochs=1"]
    status, table, progress = eval_(*arguments, capsys=capsys)
    assert status == 0, progress
    results = read_results(tmp_path / "results.jsonl")
    assert sorted(r.task for r in results) == sorted([*GLUE, *GLUE])
    assert {r.steps for r in results} == {1}
    assert all(set(r.partial) == set(GLUE[r.task].sizes) for r in results)
    assert "18 of 18" in progress
    for row in json.loads((tmp_path / "glue.json").read_text())["rows"]:
        assert len(row["numbers"]) == 13
        assert row["averages"]["nine-number mean"]["missing"] == []
    for text in ("MNLI mm acc", "nine-number mean", "80.9", "this evaluation: 1 seed", "without WNLI"):
        assert text in table
    assert "\nwithout the official number of rows: " in table
    assert "\nfine-tuned differently from the published rows: epochs 1 (published: 5)\n" in table
    before = (tmp_path / "results.jsonl").read_bytes()
    status, again, progress = eval_(*arguments, capsys=capsys)
    assert (status, again) == (0, table)
    assert "18 of 18 jobs are already in the results" in progress
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_narrow_models_get_their_own_protocol_and_are_told(model, data, tmp_path, capsys):
    wide = tmp_path / "wide"
    tiny_model(hidden_size=512, num_hidden_layers=1).save_pretrained(wide)
    save_tokenizer(wide)
    arguments = ["--data", str(data), "--output", str(tmp_path), "--seeds", "1", "--tasks", "rte", "--device", "cpu"]
    assert main(["eval", str(model), *arguments, "--set", "epochs=1"]) == 0
    assert "eval: suite glue-compact, since no model is wider than 256; the rules" in capsys.readouterr().err
    assert (tmp_path / "glue-compact.json").is_file() and not (tmp_path / "glue.json").exists()
    assert main(["eval", str(model), str(wide), *arguments, "--set", "epochs=1"]) == 0
    assert "glue-compact" not in capsys.readouterr().err and (tmp_path / "glue.json").is_file()


def test_ten_tasks_of_superglue_in_one_command(model, superglue, tmp_path, capsys):
    arguments = [model, "--suite", "superglue", "--data", superglue, "--output", tmp_path, "--seeds", 1]
    status, table, progress = eval_(*arguments, "--set", "epochs=1", "overrides.record.epochs=1", capsys=capsys)
    assert status == 0, progress
    results = {r.task: r for r in read_results(tmp_path / "results.jsonl")}
    assert results.keys() == SUPERGLUE.keys()
    assert (results["copa"].steps, results["record"].steps, results["wic"].steps) == (2, 2, 1)  # 24, 24, 12 candidates
    assert results["axb"].seconds == results["rte"].seconds
    assert results["record"].rows == {"train": _ROWS, "validation": _ROWS}
    row = json.loads((tmp_path / "superglue.json").read_text())["rows"][0]
    shown = {number["title"]: number["median"] for number in row["numbers"]}
    assert {"ReCoRD F1", "ReCoRD EM", "MultiRC EM", "CB F1", "AX-g parity"} <= shown.keys()
    counted = [name for name in SUPERGLUE if name not in ("axb", "axg")]
    by_task = [[n["median"] for n in row["numbers"] if n["task"] == name] for name in counted]
    expected = sum(sum(numbers) / len(numbers) for numbers in by_task) / len(counted)
    assert row["averages"]["mean of tasks"]["mean"] == pytest.approx(expected)
    assert "rows truncated to 24 tokens" in table and "nine-number" not in table


def test_failing_job_is_named_and_the_others_continue(model, data, tmp_path, capsys):
    arguments = [model, "--data", data, "--output", tmp_path, "--seeds", 1, "--tasks", "rte,cola", "--set", "epochs=1"]
    status, table, progress = eval_(*arguments, "overrides.rte={lr: 100, weight_decay: 1e4, epochs: 8}", capsys=capsys)
    assert status == 1
    assert "RTE, seed 1: rte, seed 1: the loss is" in progress
    assert [r.task for r in read_results(tmp_path / "results.jsonl")] == ["cola"]
    assert "not scored: RTE" in table
    assert "published rows: epochs 1 (published: 5); for RTE epochs 8, lr 100" in table


def test_rte_starts_from_mnli_with_a_note(model, data, tmp_path, capsys):
    arguments = [model, "--data", data, "--output", tmp_path, "--seeds", 1, "--tasks", "rte,mnli"]
    status, table, progress = eval_(*arguments, "--set", "epochs=1", "mnli_start=true", capsys=capsys)
    assert status == 0, progress
    assert "start from the model fine-tuned on MNLI, which the rules of a cram forbid" in table
    assert {r.task: r.mnli_start for r in read_results(tmp_path / "results.jsonl")} == {"mnli": False, "rte": True}


def test_mnli_is_retrained_if_its_model_is_missing(model, data, tmp_path):
    protocol = ProtocolConfig(tasks=["mnli", "rte"], seeds=2, mnli_start=True)
    jobs = plan_jobs([find_model(str(model))], protocol, data, "fp32", tmp_path)
    assert [(job.task.name, job.seed) for job in jobs] == [("mnli", 1), ("mnli", 2), ("rte", 1), ("rte", 2)]
    done = {key: None for job in jobs[:3] for key in job.keys}
    assert _pending_jobs(jobs, done) == [jobs[0], jobs[3]]
    assert _pending_jobs(jobs, {**done, jobs[3].keys[0]: None}) == []


GRID = "grid={batch_size: [4, 8], lr: [0, 3e-3], held_out: 0.25}"


def test_settings_are_selected_on_held_out_train_rows_and_the_table_says_which(model, data, tmp_path, capsys):
    arguments = [model, "--data", data, "--output", tmp_path, "--seeds", 2, "--tasks", "rte,cola", "--set", GRID]
    status, table, progress = eval_(*arguments, "epochs=2", capsys=capsys)
    assert status == 0, progress
    assert "8 of 8: " in progress and "4 of 4: " in progress
    found = read_results(tmp_path / "results.jsonl")
    selection = [result for result in found if "held-out" in result.scores]
    assert len(found) == 12 and len(selection) == 8
    assert {(result.rows["train"], result.rows["held-out"], result.seed) for result in selection} == {(9, 3, 1)}
    assert {result.steps for result in selection if result.task == "rte"} == {6, 4}  # nine rows in fours and eights
    assert all(result.scores.keys() == {"validation"} for result in found if result not in selection)
    assert "batch_size and lr selected for each task on 25 % of its train rows, which the rules of a cram" in table
    assert re.search(
        r"for CoLA batch_size [48], lr 0(\.003)?; for RTE batch_size [48], lr 0(\.003)?", table
    ) or re.search(r"for RTE batch_size [48], lr 0(\.003)?; for CoLA batch_size [48], lr 0(\.003)?", table)
    before = (tmp_path / "results.jsonl").read_bytes()
    assert eval_(*arguments, "epochs=2", capsys=capsys)[:2] == (0, table)
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_the_best_setting_of_each_task_wins_and_the_first_of_equals(model, data):
    protocol = ProtocolConfig(tasks=["rte", "cola"], grid={"batch_size": [4, 8], "lr": [1e-3, 1e-4]}, epochs=2)
    source = find_model(str(model))
    jobs = plan_selection([source], protocol, data, "fp32")
    scores = {"rte": [50.0, 61.0, 61.0, 60.0], "cola": [-1.0, -3.0, -2.0]}  # the last job of CoLA failed
    found = {}
    for task, metric in (("rte", "accuracy"), ("cola", "matthews")):
        for job, score in zip([job for job in jobs if job.task.name == task], scores[task], strict=False):
            found[job.keys[0]] = SimpleNamespace(scores={"held-out": {metric: score}})
    chosen = select_settings(protocol, source, jobs, found)
    assert chosen.grid is None and chosen.tasks == ["rte", "cola"]
    assert {name: (own.batch_size, own.lr) for name, own in chosen.overrides.items()} == {
        "rte": (4, 1e-4), "cola": (4, 1e-3),
    }  # fmt: skip
    plain = ProtocolConfig(tasks=["rte"], epochs=2, batch_size=4, lr=1e-4)
    keys = [job.keys for job in plan_jobs([source], plain, data, "fp32", Path())]
    assert [job.keys for job in plan_jobs([source], chosen, data, "fp32", Path()) if job.task.name == "rte"] == keys
    assert select_settings(protocol, source, jobs[:4], {}).tasks == []


def test_answers_of_a_question_are_held_out_together(superglue):
    train, held_out = read_split(SUPERGLUE["multirc"], "train", superglue).divide(0.25, "held-out")
    groups = [{example.group for example in part.examples} for part in (train, held_out)]
    assert groups[0] and groups[1] and not groups[0] & groups[1]
    with pytest.raises(CramError, match="train: 12 examples are too few to hold out 0.01 of them"):
        read_split(SUPERGLUE["rte"], "train", superglue).divide(0.01, "held-out")


def test_task_with_its_own_seeds(model, data, tmp_path):
    protocol = ProtocolConfig(tasks=["cola", "rte"], seeds=1, overrides={"rte": TaskSettingsConfig(seeds=3)})
    jobs = plan_jobs([find_model(str(model))], protocol, data, "fp32", tmp_path)
    assert [job.task.name for job in jobs] == ["cola", "rte", "rte", "rte"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "colla"], "got 'colla'; did you mean 'cola'?"),
        (["--suite", "glew"], "--suite glew: no such protocol; use one of glue"),
        (["--tasks", "rte", "--set", "mnli_start=true"], "add mnli to tasks"),
        (["--set", "epochs=0"], "epochs"),
        (["--set", "precision=fp16"], "fp16 needs a GPU"),
        (["--set", GRID, "mnli_start=true"], "mnli_start: the grid selects settings without it"),
        (["--set", GRID, "overrides.rte.lr=1e-3"], "overrides.rte.lr: has no effect with grid"),
        (["--set", "grid={held_out: 0.9}"], "grid.held_out"),
        (["--set", "grid={lr: []}"], "grid.lr"),
        (["--slurm", "nonsense"], "--slurm nonsense: expected key=value"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_trained(arguments, message, model, data, tmp_path, capsys):
    status, _, error = eval_(model, "--data", data, "--output", tmp_path / "out", *arguments, capsys=capsys)
    assert status == 2
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_jobs_are_for_a_cpu_of_this_machine(model, data, tmp_path, capsys, monkeypatch):
    places = [str(model), "--data", str(data), "--output", str(tmp_path / "out")]
    arguments = ["eval", *places, "--suite", "glue", "--jobs", "2"]
    assert main([*arguments, "--slurm", "timeout_min=60"]) == 2
    assert capsys.readouterr().err.startswith("error: --jobs: has no effect with --slurm")
    monkeypatch.setattr("cram_composer.evaluation.fine_tuning.suite.device_kind", lambda device, instead: "cuda")
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: --jobs: has no effect on GPUs")


def test_data_are_checked_first(model, tmp_path, capsys):
    status, _, error = eval_(model, "--data", tmp_path / "none", "--output", tmp_path / "out", capsys=capsys)
    assert (status, error.count("\n")) == (2, 1)
    assert "no such folder" in error


def test_published_results_are_averaged_over_the_scored_tasks():
    results = [
        Result(
            "m",
            "h",
            "s",
            "glue",
            name,
            seed,
            {"validation": {metric: value}},
            {},
            [],
            False,
            1,
            1.0,
            1.0,
            1.0,
            "cpu",
            "fp32",
        )
        for name, metric, value in (("cola", "matthews", 10.0), ("sst2", "accuracy", 80.0))
        for seed in (1, 2, 3)
    ]
    protocol = ProtocolConfig(tasks=["cola", "sst2"], seeds=3)
    table = console_table(protocol, [model_row(protocol, "m", "h", results, 128)])
    mean = (56.5 + 91.9) / 2
    assert f"BERT-base, fully trained: {mean:.1f} on SST-2, CoLA, the tasks scored here (80.9 on all)" in table
    assert "45.0 (6 missing)" in table
    assert "80.0 (80.0 to 80.0)" in table


def test_slurm_jobs_are_two_arrays_of_which_the_second_waits_for_mnli(model, data, tmp_path, slurm_here, capsys):
    arguments = [model, "--data", data, "--output", tmp_path, "--seeds", 1, "--tasks", "rte,mnli,cola"]
    settings = [
        "--set",
        "epochs=4",
        "mnli_start=true",
        "overrides.cola={lr: 100, weight_decay: 1e4}",
        "--slurm",
        "timeout_min=60",
    ]
    status, table, progress = eval_(*arguments, *settings, capsys=capsys)
    assert slurm_here.sizes == [2, 1]
    assert slurm_here.asked[0]["timeout_min"] == 60 and slurm_here.asked[0]["gpus_per_node"] == 0
    assert status == 1 and "CoLA, seed 1" in progress and "logs in" in progress
    assert {r.task for r in read_results(tmp_path / "results.jsonl")} == {"mnli", "rte"}
    assert "not scored: CoLA" in table


@pytest.mark.parametrize(
    ("cores", "jobs", "variable", "threads"),
    [(8, 2, None, 4), (2, 8, None, 1), (8, 2, "1", 1), (8, 2, "16", 4), (8, 2, "0", 1), (8, 2, "4,2", 4)],
)
def test_jobs_share_the_cores_within_omp_num_threads(
    cores: int, jobs: int, variable: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads_per_job(cores, jobs) == threads
