"""Early looks at a sweep: what they cost, and that all looks together are wrong in 5 % of cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cram_composer.analysis.compare.compare import Pair, compare
from cram_composer.analysis.compare.groups import make_group
from cram_composer.analysis.compare.looks import LOOKS, level_of, look, plan_looks, spent
from cram_composer.analysis.compare.statistics import compare_means
from cram_composer.analysis.runs.run import load_run
from cram_composer.cli import main
from cram_composer.sweeps.sweep import _undecided

MUON = {"settings": {"optimizer.name": "muon"}}


def test_levels_add_up_to_five_percent_however_often_one_looks():
    assert spent(1.0) == pytest.approx(0.05) and spent(0.5) == pytest.approx(0.00557, abs=1e-5)
    for looks in ([10], [5, 10], [2, 3, 4, 5, 6, 7, 8, 9, 10], [3, 3, 10, 10]):
        levels = {n: level_of(n, looks[:place], 10) for place, n in enumerate(looks)}
        assert sum(levels.values()) == pytest.approx(0.05)
    assert level_of(10, [], 10) == pytest.approx(0.05)  # without an early look, nothing is paid


def test_a_variant_that_was_stopped_stays_paired_with_a_baseline_that_goes_on():
    stopped, baseline = {1: 4.10, 2: 4.21, 3: 4.30}, {1: 4.20, 2: 4.31, 3: 4.41, 4: 4.9, 5: 3.9}
    assert compare_means(stopped, baseline) == compare_means(stopped, {seed: baseline[seed] for seed in stopped})


def test_seeds_beyond_the_plan_have_no_level_after_a_look():
    assert level_of(5, [3], 3) == 0.0
    assert level_of(5, [], 3) == pytest.approx(0.05)


def test_all_looks_together_are_wrong_in_five_percent_and_naive_ones_in_far_more():
    random, wrong, naive = np.random.default_rng(0), 0, 0
    for _ in range(2000):
        differences = random.normal(0.0, 1.0, 8)
        p_values = {
            n: compare_means(dict(enumerate(differences[:n])), dict.fromkeys(range(n), 0.0)).p_value or 0.0
            for n in range(2, 9)
        }
        wrong += any(p <= level_of(n, range(2, n), 8) for n, p in p_values.items())
        naive += any(p <= 0.05 for p in p_values.values())
    assert 0.02 < wrong / 2000 < 0.06
    assert naive / 2000 > 0.12


def sweep_folder(make_seeds, tmp_path: Path, seeds: int, planned: int) -> Path:
    """Write a sweep in which `muon` is better in every seed, by 0.1 nats with little noise."""
    noise = np.random.default_rng(1).normal(0.0, 0.004, (2, seeds))
    folder = tmp_path / "sweep"
    folder.mkdir()
    for name, losses, changes in (("base", 4.2 + noise[0], {}), ("muon", 4.1 + noise[1], MUON)):
        for seed, path in enumerate(make_seeds(f"{tmp_path.name}-{name}", losses, **changes), start=1):
            shutil.copytree(path, folder / f"{name}-{seed}")
    plan_looks(folder, planned)
    return folder


def verdict_of(folder: Path, seeds: int) -> Pair:
    groups = [
        make_group(name, [load_run(folder / f"{name}-{seed}") for seed in range(1, seeds + 1)])
        for name in ("base", "muon")
    ]
    return compare(groups, groups[0], look(groups, groups[0]))[0]


def test_an_early_verdict_needs_more_and_a_planned_one_pays_for_it(make_seeds, tmp_path: Path) -> None:
    folder = sweep_folder(make_seeds, tmp_path, 3, planned=3)
    early = verdict_of(folder, 2)
    difference = early.rows[0].difference
    assert difference is not None and difference.p_value is not None
    assert 0.0164 < difference.p_value < 0.05 or early.verdict.word == "better"
    if early.verdict.word != "better":
        assert "a level of 1.6 % for this look, which came early" in early.verdict.text
    assert verdict_of(folder, 3).verdict.word == "better"
    found = json.loads((folder / LOOKS).read_text())
    assert found["planned"] == 3 and list(found["looks"].values()) == [[2, 3]]
    plan_looks(folder, 9)  # the plan stays after a look
    assert json.loads((folder / LOOKS).read_text())["planned"] == 3


def test_seeds_added_after_a_look_give_no_verdict_and_the_remedy(make_seeds, tmp_path: Path, capsys) -> None:
    folder = sweep_folder(make_seeds, tmp_path, 4, planned=3)
    assert verdict_of(folder, 3).verdict.word == "better"
    found = verdict_of(folder, 4)
    assert found.verdict.word == "no verdict"
    assert "seeds were added after a look" in found.verdict.text and "first_seed" in found.verdict.text
    named = [f"a={folder}/base-*", f"b={folder}/muon-*"]  # whatever they are called
    for arguments in (named, [str(folder)]):
        assert main(["compare", *arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["comparisons"][0]["verdict"]["word"] == "no verdict"


def test_runs_outside_of_a_sweep_are_compared_as_before(make_seeds, tmp_path: Path) -> None:
    folder = sweep_folder(make_seeds, tmp_path, 3, planned=3)
    (folder / LOOKS).unlink()
    assert verdict_of(folder, 3).verdict.word == "better"
    assert not (folder / LOOKS).exists()


def test_a_decided_variant_gets_no_more_seeds(make_seeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep_folder(make_seeds, tmp_path, 3, planned=4)
    trials = [
        SimpleNamespace(variant=name, seed=seed, path=folder / f"{name}-{seed}", composed=None)
        for seed in (1, 2, 3, 4)
        for name in ("base", "muon", "other")
    ]
    monkeypatch.setattr("cram_composer.sweeps.effects.unfinished_reason", lambda trial: "")
    monkeypatch.setattr("cram_composer.sweeps.effects.finished_record", lambda trial: trial.path.exists() or None)
    others = [trial for trial in trials if trial.variant == "other"]
    block = [trial for trial in trials if trial.seed == 4]
    left = _undecided(block, [trial for trial in trials if trial.variant != "other"] + [others[-1]], "base")
    assert [trial.variant for trial in left] == ["base", "other"]
    only = [trial for trial in trials if trial.variant != "other"]
    assert _undecided([trial for trial in only if trial.seed == 4], only, "base") == []
