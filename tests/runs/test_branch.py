"""Branches: one run at a constant rate is the first part of several runs, each with its own decay."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cram_composer.cli import main
from cram_composer.errors import ConfigError, CramError
from cram_composer.runs.branch import create_branch
from cram_composer.runs.branch_points import list_branch_points
from tests.conftest import Train, environment
from tests.tiny_runs import TinyRuns, compose_tiny, losses, record, same, saved

TRUNK = ["recipes=[crammed-bert,schedule-wsd]", "algorithms.batch_size_ramp=null", "schedule.warmup=0.2"]
KEPT = "checkpoint.branch_at=[0.4,0.7]"


@pytest.fixture(scope="module")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    return TinyRuns(tiny_data, tmp_path_factory.mktemp("branches"))


@pytest.fixture(scope="module")
def trunk(runs: TinyRuns) -> Path:
    return runs("trunk", *TRUNK, KEPT)


def test_branch_points_are_kept(trunk: Path) -> None:
    first, second = list_branch_points(trunk)
    assert (first.step, first.point, first.progress) == (5, 0.4, 0.4)
    assert (second.step, second.point) == (8, 0.7)
    assert first.elapsed < second.elapsed and first.tokens == 5 * 32 * 32


def test_name_cannot_lead_out_of_the_folder(trunk: Path) -> None:
    with pytest.raises(CramError, match=r"^--name: '\.\./\.\./evil' is not a plain relative path"):
        create_branch(trunk, "4", "8", name="../../evil")
    assert not (trunk.parent / "../../evil").exists()


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_branch_equals_the_run_with_this_schedule_from_the_start(shape: str, trunk: Path, runs: TinyRuns) -> None:
    made = create_branch(trunk, "4", "8", name=f"to-8-{shape}", decay_shape=shape)
    assert made.path == trunk.with_name(f"to-8-{shape}")
    config = made.composed.config
    assert (config.budget.steps, config.budget.wall) == (8, None)
    assert (config.schedule.name, config.schedule.warmup, config.schedule.decay) == ("wsd", 0.25, 0.5)
    begun = record(made.path)
    assert begun["status"] == "interrupted" and begun["config_hash"] == made.composed.hash
    runs.continue_run(made.path, made.composed)
    direct = runs(
        f"direct-{shape}",
        *TRUNK,
        f"schedule={{warmup: 0.25, decay: 0.5, decay_shape: {shape}}}",
        "budget={wall: null, steps: 8}",
    )
    assert losses(made.path) == losses(direct)
    assert same(saved(made.path, 8)["model"], saved(direct, 8)["model"])
    ended = record(made.path)
    assert ended["status"] == "finished" and ended["branched_from"]["step"] == 5
    assert [attempt["reason"] for attempt in ended["attempts"]] == ["branched", "finished"]
    assert (
        "final_eval" not in begun["ledger"]["outside"]
        and ended["ledger"]["outside"].keys() == record(direct)["ledger"]["outside"].keys()
    )
    assert record(trunk)["steps"] == 10 and list_branch_points(trunk)[0].path.is_file()


def test_missing_branch_points_and_bad_amounts_are_rejected(trunk: Path) -> None:
    for arguments, says in (
        (("5", "8"), "has no checkpoint at 5 steps; choose from 4 steps, 7 steps"),
        (("4", "4"), "must be > 4 steps"),
        (("half", "8"), "must be a number of steps, the unit of the trunk's budget"),
        (("4", "-1"), "must be a number of steps"),
    ):
        with pytest.raises(CramError, match=says):
            create_branch(trunk, *arguments, name="none")
    assert not trunk.with_name("none").exists()
    assert not list(trunk.parent.glob(".none*"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["recipes=[crammed-bert]", "algorithms.batch_size_ramp=null"], "got 'triangle'"),
        ([TRUNK[0], TRUNK[2]], "algorithms.batch_size_ramp: ends at 60%"),
        ([*TRUNK, "algorithms.ema={}"], "algorithms.ema: ema is scheduled by budget fraction"),
        ([*TRUNK, "schedule.decay=0.5"], "checkpoint.branch_at: must be between 20% and 50%"),
        ([*TRUNK, "budget.epochs=1"], "checkpoint.branch_at: a branch needs exactly one budget limit"),
    ],
)
def test_a_trunk_that_cannot_have_branches_does_not_start(overrides: list[str], says: str, tiny_data: Path) -> None:
    compose_tiny(tiny_data, *overrides)
    with pytest.raises(ConfigError) as caught:
        compose_tiny(tiny_data, *overrides, KEPT)
    assert says in str(caught.value)
    assert ("checkpoint.branch_at: " in says) or str(caught.value).endswith("; or set checkpoint.branch_at=[]")


def test_two_limits_of_time_are_one_and_a_decay_may_begin_at_a_point(tiny_data: Path) -> None:
    time = "budget={wall: 1h, device_hours: 2, steps: null}"
    compose_tiny(tiny_data, *TRUNK, "schedule.decay=0.3", time, KEPT)


def test_a_run_without_branch_points_or_constant_rate_has_no_branch(trunk: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(trunk, tmp_path / "copy")
    changed = record(copy)
    changed["config"]["schedule"] = {"name": "triangle"}
    (copy / "record.json").write_text(json.dumps(changed))
    with pytest.raises(CramError, match="got 'triangle'"):
        create_branch(copy, "4", "9")
    shutil.copyfile(trunk / "record.json", copy / "record.json")
    with pytest.raises(CramError, match="algorithms.batch_size_ramp: ends at 41%"):
        changed = record(trunk)
        changed["config"]["algorithms"]["batch_size_ramp"] = {"until": 0.41}
        (copy / "record.json").write_text(json.dumps(changed))
        create_branch(copy, "4", "9")
    shutil.rmtree(copy / "branch-points")
    with pytest.raises(CramError, match="has no checkpoint to branch from"):
        create_branch(copy, "4", "9")


def test_trunk_with_several_device_counts_or_late_points_is_rejected(trunk: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trunk, copy)
    changed = record(copy)
    changed["attempts"].append({**changed["attempts"][-1], "world_size": 2})
    (copy / "record.json").write_text(json.dumps(changed))
    with pytest.raises(CramError, match="was trained on 1 and 2 devices"):
        create_branch(copy, "4", "8")
    shutil.copyfile(trunk / "record.json", copy / "record.json")
    kept = list_branch_points(copy)[0].path.with_suffix(".json")
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"progress": 0.5}))
    with pytest.raises(CramError, match="was interrupted there and saved its checkpoint at 50.0% of its budget"):
        create_branch(copy, "4", "8")


def test_points_outside_the_budget_are_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "yamls/cram-cpu.yaml", "checkpoint.branch_at=[1.5]"]) == 2
    assert "checkpoint.branch_at: must be between 0 and 1, exclusive, got [1.5]" in capsys.readouterr().err


def test_from_the_command_line_with_a_clock(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Branch a trunk of twelve seconds at about half, with one and a half seconds more."""
    settings = ["recipes=[crammed-bert,schedule-constant]", "algorithms.batch_size_ramp=null", "run_name=trunk"]
    done = train(*settings, "budget=12s", "checkpoint.branch_at=[0.5]", "data.num_workers=0")
    assert done.returncode == 0, done.stderr
    (point,) = list_branch_points(tmp_path / "trunk")
    leave = ["branch", str(tmp_path / "trunk"), "--at", "6s", "--budget"]
    assert main([*leave, f"{point.elapsed + 1.5:.2f}s", "--name", "short", "--prepare"]) == 0
    said = capsys.readouterr().out
    yaml = tmp_path / "short" / "branch.yaml"
    assert f"train: cram train {yaml}" in said
    assert main([*leave, "18s", "--name", "short"]) == 2
    assert "already exists; continue it with" in capsys.readouterr().err
    goes_on = subprocess.run([sys.executable, "-m", "cram_composer.cli", "train", str(yaml)], env=environment())
    assert goes_on.returncode == 0
    ended = json.loads((tmp_path / "short" / "record.json").read_text())
    spent = ended["ledger"]["inside_total"] - point.elapsed
    assert ended["status"] == "finished" and 1.4 <= spent < 6.0
    lines = [json.loads(line) for line in (tmp_path / "short" / "trace.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines)))
    assert lines[-1]["lr"] < lines[ended["branched_from"]["step"] - 1]["lr"]
