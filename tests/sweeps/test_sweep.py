"""A sweep from the command line: runs in separate processes, one that fails, one that resumes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from filelock import FileLock

from cram_composer.cli import main
from cram_composer.config import compose
from cram_composer.config.schema.run import BudgetConfig, RunConfig
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.errors import CramError
from cram_composer.jobs.runner import Runner
from cram_composer.storage.files import read_json
from cram_composer.sweeps.execution import local_slots
from cram_composer.sweeps.plan import Trial, plan_trials
from cram_composer.sweeps.progress import SweepProgress, progress
from cram_composer.sweeps.sweep import SweepResult, _undecided
from cram_composer.sweeps.warm_up import warm_up_trials
from tests.conftest import SMALL, SlurmHere
from tests.servers import Bucket
from tests.tiny_runs import TinyRuns

pytestmark = pytest.mark.usefixtures("small_run")


@pytest.fixture
def small_run(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write `small.yaml`, a run of four steps."""
    settings: dict[str, Any] = {
        "budget": {"steps": 4},
        "device": "cpu",
        "data": {"local": str(tiny_data), "num_workers": 0},
    }
    for item in [*SMALL, "checkpoint.interval=0.000001s"]:
        key, value = item.split("=")
        section = settings
        *sections, last = key.split(".")
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(value)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def quick(tiny_run: TinyRuns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train the runs of sweeps in forked processes; tests without this fixture start a command for each."""

    def train_all(trials: Sequence[Trial], runner: Runner, on_poll: Callable[..., None]) -> Iterator[tuple[Trial, str]]:
        for trial in trials:
            tiny_run.continue_run(trial.path, trial.composed)
            yield trial, ""

    monkeypatch.setattr("cram_composer.sweeps.sweep.train_all", train_all)


def write_sweep(**values: Any) -> None:
    Path("own.yaml").write_text(yaml.safe_dump({"name": "own", "run": "small.yaml", **values}, sort_keys=False))


def sweep(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    return main(["sweep", "own.yaml", *arguments]), *capsys.readouterr()


def test_looks_are_noted_and_more_seeds_after_one_give_no_verdict(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"low": {}, "high": {"set": {"optimizer.lr": 0.05}}}
    write_sweep(seeds=2, variants=variants, stop_when_decided=True)
    assert sweep("--yes", "--jobs", "2", capsys=capsys)[0] == 0
    looks = read_json(Path("runs/sweeps/own/looks.json"))
    assert looks["planned"] == 2 and list(looks["looks"].values()) == [[2]]
    write_sweep(seeds=3, variants=variants)
    status, text, progress_lines = sweep("--yes", "--jobs", "2", capsys=capsys)
    assert status == 0, progress_lines
    assert "no verdict" in text and "seeds were added after a look" in Path("runs/sweeps/own/report.html").read_text()


def test_a_run_that_failed_does_not_stop_its_variant(tmp_path: Path) -> None:
    trials = [
        SimpleNamespace(variant=name, seed=seed, path=tmp_path / f"{name}{seed}", log=tmp_path / f"{name}{seed}.log")
        for seed in (1, 2)
        for name in ("base", "failed", "stopped")
    ]
    trials[0].path.mkdir()
    trials[1].log.touch()
    assert [each.variant for each in _undecided(trials[3:], trials, "base")] == ["base", "failed"]


def test_kernels_are_compiled_before_the_runs_that_count(
    quick: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short: list[tuple[str, int | None]] = []

    @contextlib.contextmanager
    def watched(*arguments: Any) -> Iterator[list[Trial]]:
        with warm_up_trials(*arguments) as trials:
            yield trials
            for trial in trials:
                record = read_json(trial.path / "record.json")
                short.append((trial.variant, record["steps"]))

    monkeypatch.setattr("cram_composer.sweeps.sweep.warm_up_trials", watched)
    patience = {"train.early_stop": {"patience": 3}, "eval.interval": 0.3, "budget": {"steps": 5}}
    write_sweep(seeds=2, variants={"low": {}, "high": {"set": {"optimizer.lr": 0.05, **patience}}}, warm_up_steps=2)
    status, text, progress_lines = sweep("--yes", "--jobs", "2", capsys=capsys)
    assert status == 0, progress_lines
    assert "first, 2 steps of 2 variants, to compile kernels" in text
    assert sorted(short) == [("high", 2), ("low", 2)]
    folder = Path("runs/sweeps/own")
    assert not (folder / ".warm-up").exists()
    shutil.rmtree(folder / "low-seed2")
    status, text, _ = sweep("--yes", capsys=capsys)
    assert status == 0 and "first, 2 steps of 1 variants" in text and short[2:] == [("low", 2)]


def test_every_variant_is_compared_at_its_own_best_rate_on_new_seeds(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = [0.0, 0.01, 0.1]
    variants = {"plain": {}, "rope": {"add": ["rope"]}}
    write_sweep(variants=variants, tune={"optimizer.betas": [[0.9, 0.98], [0.9, 0.95]]}, baseline="ropes")
    status, _, error = sweep("--yes", capsys=capsys)
    assert status == 2 and "baseline: must be one of plain, rope, got 'ropes'" in error  # before any run
    assert not Path("runs").exists()
    write_sweep(seeds=2, variants=variants, tune={"optimizer.lr": rates})
    status, text, _ = sweep("--report", capsys=capsys)
    assert status == 0 and "tuning is not finished: plain-lr-0-seed1, plain-lr-0.01-seed1" in text
    status, text, progress_lines = sweep("--yes", "--jobs", "2", capsys=capsys)
    assert status == 0, progress_lines
    assert (
        "tuning 2 variants, before 4 runs of them at their best" in text and "4 runs, 2 variants with 2 seeds" in text
    )
    for name in ("plain", "rope"):
        losses = {
            rate: read_json(Path(f"runs/sweeps/own-tune/{name}-lr-{rate:g}-seed1/record.json"))["metrics"]
            for rate in rates
        }
        best = min(rates, key=lambda rate: losses[rate]["validation_loss"])
        edge = "; optimizer.lr at an end of the grid, so the best may lie beyond" if best != 0.01 else ""
        loss = losses[best]["validation_loss"]
        assert f"tuned {name}: optimizer.lr={best}, loss {loss:.4f} with 1 seed(s){edge}\n" in text
        final = [read_json(Path(f"runs/sweeps/own/{name}-seed{seed}/record.json")) for seed in (2, 3)]
        assert {record["config"]["optimizer"]["lr"] for record in final} == {best}
        assert {record["config"]["seed"] for record in final} == {2, 3}
    assert not Path("runs/sweeps/own/plain-seed1").exists()
    assert "to train" not in sweep("--yes", capsys=capsys)[1]


def test_halvings_drop_the_worse_half_of_the_points_after_shorter_runs(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = [0.0, 0.003, 0.01, 0.03, 0.1]
    budgets = {"plain": 4, "rope": 8}  # steps
    variants = {"plain": {}, "rope": {"add": ["rope"], "set": {"budget.steps": budgets["rope"]}}}
    write_sweep(seeds=1, variants=variants, tune={"optimizer.lr": rates}, tune_halvings=3)
    assert "tune_halvings: 3 leave one of 5 points before the last runs" in sweep("--yes", capsys=capsys)[2]
    write_sweep(seeds=1, variants=variants, tune={"optimizer.lr": rates}, tune_halvings=2)
    status, text, progress_lines = sweep("--yes", "--jobs", "2", capsys=capsys)
    assert status == 0, progress_lines
    assert text.count("tuning 2 variants, before 2 runs of them at their best; 2 more rounds") == 1
    for name, budget in budgets.items():
        left = rates
        for folder, steps, count in (
            ("own-tune-2", budget // 4, 5), ("own-tune-1", budget // 2, 3), ("own-tune", budget, 2),
        ):  # fmt: skip
            found = {
                record["config"]["optimizer"]["lr"]: record
                for path in Path("runs/sweeps", folder).glob(f"{name}-*/record.json")
                if (record := read_json(path))
            }
            assert sorted(found) == sorted(left) and len(left) == count
            assert {record["steps"] for record in found.values()} == {steps}
            left = sorted(found, key=lambda rate: found[rate]["metrics"]["validation_loss"])[: (count + 1) // 2]
        final = read_json(Path(f"runs/sweeps/own/{name}-seed2/record.json"))
        assert [final["config"]["optimizer"]["lr"]] == left
    assert "to train" not in sweep("--yes", capsys=capsys)[1]


FACTORS = {
    "rate": {"set": {"optimizer.lr": 0.05}},
    "rope": {"add": ["rope"]},
    "swiglu": {"add": ["swiglu"]},
}


def test_a_design_estimates_every_effect_from_all_runs(quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(seeds=2, factors=FACTORS, set={"recipes": ["crammed-bert"]})
    status, text, progress_lines = sweep("--yes", "--jobs", "2", capsys=capsys)
    assert status == 0, progress_lines
    assert "8 runs, 4 variants with 2 seeds" in text
    records = {
        number: [read_json(Path(f"runs/sweeps/own/{number:02d}-seed{seed}/record.json")) for seed in (1, 2)]
        for number in range(4)
    }
    on = {number: "rope" in found[0]["recipes"] for number, found in records.items()}
    assert sorted(on.values()) == [False, False, True, True] and not on[0]
    mean = {n: sum(record["metrics"]["validation_loss"] for record in found) / 2 for n, found in records.items()}
    effect = sum(mean[n] for n in on if on[n]) / 2 - sum(mean[n] for n in on if not on[n]) / 2
    row = next(line.split() for line in text.splitlines() if line.startswith("rope "))
    assert float(row[1]) == pytest.approx(effect, abs=1e-4)
    assert "each effect compares 2 runs with 2, 2 seeds each; standard error" in text
    assert "rate cannot be told from rope x swiglu" in text
    assert "Half-normal plot" in Path("runs/sweeps/own/report.html").read_text()
    status, again, _ = sweep("--report", "--json", capsys=capsys)
    values = json.loads(again)
    assert status == 0 and values["runs"] == 4 and values["method"] == "seeds" and values["degrees"] == 3.0
    assert {one["name"] for one in values["effects"]} == set(FACTORS)
    if values["confirm"] is not None:
        assert main(["sweep", values["confirm"], "--report"]) == 0

    shutil.rmtree("runs/sweeps/own/03-seed2")
    _, text, _ = sweep("--report", capsys=capsys)
    assert "no effects yet: they need every run of the design" in text and "03: left out 03-seed2" in text


def test_factors_that_change_the_data_are_not_compared(
    quick: None, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(tiny_data, Path("other-data"))
    manifest = read_json(other / "manifest.json")
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))
    factors = {"data": {"set": {"data.local": str(other)}}, "rate": {"set": {"optimizer.lr": 0.05}}}
    write_sweep(seeds=1, factors=factors)
    _, text, _ = sweep("--yes", "--jobs", "2", capsys=capsys)
    assert "not comparable: " in text and "effect" not in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"factors": FACTORS, "variants": {"a": {}}}, "variants: excludes factors"),
        ({"factors": FACTORS, "grid": {"optimizer.lr": [1, 2]}}, "grid: excludes factors"),
        ({"factors": FACTORS, "stop_when_decided": True}, "stop_when_decided: a design needs all of its runs"),
        ({"tune": {"optimizer.lr": [1, 2]}}, "tune: finds the best values of variants"),
        ({"tune_seeds": 2, "variants": {"a": {}}}, "tune_seeds: has no effect without tune"),
        ({"tune_halvings": 1, "variants": {"a": {}}}, "tune_halvings: has no effect without tune"),
        (
            {"tune": {"optimizer.lr": [1]}, "grid": {"optimizer.lr": [1, 2]}},
            "optimizer.lr: is in grid and in tune; remove one of them",
        ),
        ({"tune": {"optimizer.lr": [1]}, "variants": {"a": {"set": {"optimizer.lr": 2}}}}, "is also in tune"),
        ({"tune": {"optimizer.lr": []}, "variants": {"a": {}}}, "tune.optimizer.lr: must not be empty"),
        ({"factors": FACTORS, "tune": {"optimizer.lr": [1]}}, "tune: excludes factors"),
        (
            {"tune": {"budget.steps": [1, 2, 3]}, "tune_halvings": 1, "variants": {"a": {}}},
            "tune: budget.steps cannot be tuned with tune_halvings",
        ),
        ({"design": "fractional", "variants": {"a": {}}}, "design: has no effect without factors"),
        ({"factors": {"a": FACTORS["rate"], "b": FACTORS["rate"]}}, "factors: a and b both set optimizer.lr"),
        ({"factors": {"a": FACTORS["rate"]}}, "factors: a Plackett-Burman design has 2 to 23, got 1"),
        ({"factors": {"a": {"set": {"seed": 3}}, "b": FACTORS["rope"]}}, "a sets seed, which the sweep sets itself"),
        ({"factors": {"a": {"without": ["rope"]}, "b": FACTORS["rate"]}}, "'rope' is not a recipe of the run"),
    ],
)
def test_mistakes_in_a_design_are_one_line(values: dict[str, Any], message: str, capsys) -> None:
    write_sweep(**values)
    status, _, error = sweep("--yes", capsys=capsys)
    assert status == 2 and message in error and error.count("\n") == 1


def test_variants_are_trained_compared_and_not_trained_again(capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(seeds=2, variants={"low": {}, "high": {"set": {"optimizer.lr": 0.05}}})
    status, text, progress_lines = sweep("--yes", "--jobs", "2", capsys=capsys)
    assert status == 0, progress_lines
    assert "4 runs, 2 variants with 2 seeds, 4 of them to train" in text
    assert "4 have budgets in tokens, steps or epochs" in text
    assert "4 of 4" in progress_lines
    row = next(line.split() for line in text.splitlines() if line.startswith("high "))
    records = [json.loads(Path(f"runs/sweeps/own/high-seed{n}/record.json").read_text()) for n in (1, 2)]
    mean = sum(record["metrics"]["validation_loss"] for record in records) / 2
    assert row[:3] == ["high", "2", f"{mean:.4f}"]
    page = Path("runs/sweeps/own/report.html").read_text()
    assert "<h2>high against low" in page
    assert "high-seed2" in page
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")}
    status, again, _ = sweep("--yes", capsys=capsys)
    assert status == 0 and again.splitlines()[-1] == text.splitlines()[-1] and "to train" not in again
    assert before == {path: path.stat().st_mtime_ns for path in Path("runs").rglob("record.json")}


def test_a_run_that_fails_is_named_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    variants = {
        "good": {},
        "bad": {"set": {"optimizer.lr": 100.0, "optimizer.weight_decay": 1e4, "train.on_nonfinite": "stop"}},
    }
    write_sweep(seeds=1, variants=variants)
    status, text, errors = sweep("--yes", capsys=capsys)
    assert status == 1
    assert "error: runs/sweeps/own/bad-seed1: ended with status 2: " in errors
    assert "1 runs failed; run the same command to resume them" in errors
    assert "no finished run: bad" in text
    assert json.loads(Path("runs/sweeps/own/good-seed1/record.json").read_text())["status"] == "finished"
    assert sweep("--report", capsys=capsys)[1] == text[text.index("no finished run") :]


def test_a_copy_that_is_not_complete_is_tried_again_and_named(
    s3: Bucket, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(seeds=1, set={"runs_remote": f"{s3.uri}/runs"}, variants={"only": {}})
    key = "runs/own/only-seed1/record.json"
    assert sweep("--yes", capsys=capsys)[0] == 0
    whole = s3.get(key)
    s3.delete(key)
    status, text, _ = sweep("--yes", capsys=capsys)
    assert status == 0 and "to train" not in text
    assert json.loads(s3.get(key))["config_hash"] == json.loads(whole)["config_hash"]
    s3.delete(key)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        status, _, errors = sweep("--yes", capsys=capsys)
    assert status == 1
    assert f"only-seed1: finished, but its copy in {s3.uri}/runs/own/only-seed1 is not complete" in errors
    assert s3.keys(key) == []


def test_a_seed_that_failed_is_not_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(seeds=2, variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}})
    trials = plan_trials(compose(SweepConfig, "own.yaml", []).config, "own.yaml", Path("runs/sweeps/own"))
    for trial in trials:
        failed = trial.path.name == "b-seed2"
        trial.path.mkdir(parents=True)
        record = {
            "format_version": 2,
            "status": "failed" if failed else "finished",
            "reason": "CramError: a gradient is not finite" if failed else None,
            "run_name": trial.path.name,
            "config": trial.composed.plain,
            "config_hash": trial.composed.hash,
            "budget": {"steps": 4},
            "metrics": {"validation_loss": 4.0 + 0.01 * trial.seed},
        }
        (trial.path / "record.json").write_text(json.dumps(record))
    status, text, _ = sweep("--report", capsys=capsys)
    assert status == 0
    assert "left out b-seed2: failed (CramError: a gradient is not finite)" in text


@pytest.mark.parametrize(
    "command", [["sweep", "own.yaml"], ["ablate", "small.yaml", "recipes=[crammed-bert,rmsnorm]", "budget=9m"]]
)
def test_a_budget_on_the_command_line_takes_the_place_of_every_other(command, monkeypatch) -> None:
    write_sweep(budget="3h", variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}})
    planned: list[SweepConfig] = []

    def sweep(config: SweepConfig, *_: Any, **__: Any) -> SweepResult:
        planned.append(config)
        return SweepResult("", {}, [])

    monkeypatch.setattr("cram_composer.sweeps.sweep.sweep", sweep)
    main([*command, "--budget", "{tokens: 1e6}"])
    trials = plan_trials(planned[0], "own.yaml", Path("runs"))
    budgets = {repr(trial.composed.config.budget) for trial in trials}
    assert budgets == {repr(BudgetConfig(tokens=1e6))}


def test_runs_of_another_sweep_are_not_taken_for_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(seeds=1, variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}})
    run = Path("runs/sweeps/own/a-seed1")
    run.mkdir(parents=True)
    composed = compose(RunConfig, "small.yaml", ["optimizer.lr=0.7"])
    record = {
        "format_version": 2,
        "status": "finished",
        "config": composed.plain,
        "config_hash": composed.hash,
        "metrics": {},
    }
    (run / "record.json").write_text(json.dumps(record))
    status, _, errors = sweep("--yes", capsys=capsys)
    assert status == 2
    assert errors == (
        "error: runs/sweeps/own/a-seed1: holds a run with another configuration (seed, "
        "optimizer.lr); give this sweep another folder with --output\n"
    )


def test_two_sweeps_are_not_in_one_folder(capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(seeds=1, variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}})
    Path("runs/sweeps/own").mkdir(parents=True)
    with FileLock("runs/sweeps/own/.lock"):
        status, _, errors = sweep("--yes", capsys=capsys)
    assert status == 2 and "runs/sweeps/own: another sweep is running there" in errors
    assert [path.name for path in Path("runs/sweeps/own").iterdir()] == [".lock"]


def test_what_was_killed_early_is_over_and_not_compared() -> None:
    write_sweep(seeds=1, variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}})
    config = compose(SweepConfig, "own.yaml", []).config
    trials = plan_trials(config, "own.yaml", Path("runs/sweeps/own"))
    for trial, status in zip(trials, ("finished", "stopped-early"), strict=True):
        trial.path.mkdir(parents=True)
        record = {"format_version": 2, "status": status, "config_hash": trial.composed.hash}
        record["config"] = trial.composed.plain
        (trial.path / "record.json").write_text(json.dumps(record | {"metrics": {"validation_loss": 5.0}}))
    shown = SweepProgress(trials)
    assert shown.left == []
    assert [shown._state(trial) for trial in trials] == ["done", "stopped early"]


@pytest.mark.slow
def test_the_runs_of_a_killed_sweep_save_and_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    variants = {"long": {"set": {"budget": {"steps": None, "wall": "10s"}}}, "short": {}}
    write_sweep(seeds=1, variants=variants)
    started = subprocess.Popen([sys.executable, "-m", "cram_composer.cli", "sweep", "own.yaml", "--yes"])
    run = Path("runs/sweeps/own/long-seed1")
    ends = time.monotonic() + 120
    while not (run / "trace.jsonl").is_file() and time.monotonic() < ends:
        time.sleep(0.1)
    started.kill()
    started.wait()
    while not _has_ended(run) and time.monotonic() < ends:
        time.sleep(0.1)
    stopped = json.loads((run / "record.json").read_text())
    assert stopped["status"] == "interrupted" and stopped["steps"] > 0
    assert 0.0 < progress(run) < 1.0
    status, _, errors = sweep("--yes", capsys=capsys)
    assert status == 0, errors
    ended = json.loads((run / "record.json").read_text())
    assert ended["status"] == "finished"
    assert [attempt["reason"] for attempt in ended["attempts"]] == ["interrupted", "finished"]


def _has_ended(run: Path) -> bool:
    return json.loads((run / "record.json").read_text())["status"] != "running"


def test_nothing_is_spent_without_agreement(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}}, budget="3m")
    status, text, errors = sweep(capsys=capsys)
    assert status == 2 and "no terminal to ask for confirmation; add --yes" in errors
    assert "total budget: 0.3 device-hours, at least 18:00 with 1 at a time" in text
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": staticmethod(lambda: True)}))
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    assert sweep(capsys=capsys)[0] == 2
    assert not Path("runs").exists()


def test_a_slurm_array_has_a_job_for_every_run(
    slurm_here: SlurmHere, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_sweep(seeds=1, variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}})
    status, _, errors = sweep("--yes", "--slurm", capsys=capsys)
    assert status == 2 and "add timeout_min=MINUTES" in errors
    status, text, errors = sweep("--yes", "--slurm", "timeout_min=30", capsys=capsys)
    assert status == 0, errors
    assert len(json.loads(Path("runs/sweeps/own/slurm/jobs.json").read_text())) == 2
    monkeypatch.setattr("cram_composer.sweeps.execution.left_over", lambda folder: read_json(folder / "jobs.json")[:1])
    write_sweep(seeds=2, variants={"a": {}, "b": {"set": {"optimizer.lr": 0.1}}})
    again, _, errors = sweep("--yes", "--slurm", "timeout_min=30", capsys=capsys)
    assert again == 2 and "are still in the queue" in errors
    assert slurm_here.sizes == [2]
    assert slurm_here.asked[-1]["gpus_per_node"] == 0 and slurm_here.asked[-1]["timeout_min"] == 30
    assert "page: runs/sweeps/own/report.html" in text


def test_slots_share_the_cores() -> None:
    cores = sorted(os.sched_getaffinity(0))
    assert [slot.cores for slot in local_slots("cpu", None)] == [tuple(cores)]
    two = local_slots("cpu", len(cores))
    assert [slot.cores for slot in two] == [(core,) for core in cores]
    with pytest.raises(CramError, match=f"--jobs 1000: must be between 1 and {len(cores)}, the number of CPU cores"):
        local_slots("cpu", 1000)


def test_every_gpu_is_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("cram_composer.device._check_architecture", lambda instead: None)
    assert [slot.gpu for slot in local_slots("auto", None)] == ["0", "1", "2"]
    assert [slot.gpu for slot in local_slots("cuda", 2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert [slot.gpu for slot in local_slots("auto", None)] == ["4", "7"]
    assert [slot.gpu for slot in local_slots("cpu", None)] == [None]
