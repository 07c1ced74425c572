"""Tests of a group against a target loss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cram_composer.analysis.compare.groups import make_group
from cram_composer.analysis.compare.target import RECORD_LEVEL, against_target
from cram_composer.analysis.runs.run import load_run
from cram_composer.cli import main

Make = Callable[..., list[Path]]
LOSSES = [3.30, 3.31, 3.32, 3.30, 3.32]  # mean 3.31, standard error 0.00447


def test_the_p_value_is_that_of_the_table_of_students_t(make_seeds: Make) -> None:
    group = make_group("own", [load_run(path) for path in make_seeds("own", LOSSES)])
    at = 3.31 + 3.747 * 0.0044721  # t of 99 % with 4 degrees of freedom
    found = against_target(group, at)
    assert found.p_value == pytest.approx(RECORD_LEVEL, rel=2e-3)
    assert against_target(group, at + 0.001).holds and not against_target(group, at - 0.001).holds


def test_targets_are_beaten_by_chance_in_one_of_a_hundred_records(make_seeds: Make) -> None:
    group = make_group("own", [load_run(path) for path in make_seeds("own", [4.0] * 3)])
    random, beaten = np.random.default_rng(0), 0
    for _ in range(2000):
        for run in group.runs:
            run.record["metrics"]["validation_loss"] = 4.0 + 0.02 * random.normal()
        beaten += against_target(group, 4.0).holds
    assert 8 <= beaten <= 34


def test_one_group_is_enough_for_the_command(make_seeds: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(path) for path in make_seeds("own", LOSSES)]
    assert main(["compare", *folders, "--target", "3.336"]) == 0
    said = capsys.readouterr().out
    assert "own: mean held-out loss 3.3100 nats of 5 seeds, below the target 3.336 at 1 %" in said
    assert "(p = 0.0022, one-sided)" in said
    assert main(["compare", *folders, "--target", "3.31", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["targets"]
    assert found["p_value"] == pytest.approx(0.5) and found["seeds"] == 5
    assert main(["compare", folders[0], "--target", "3.336"]) == 0
    assert "one seed shows nothing about the target 3.336" in capsys.readouterr().out


def test_every_group_of_a_comparison_is_tested(
    make_seeds: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    base, other = (make_seeds(name, losses, settings={"optimizer.lr": lr}) for name, losses, lr in (
        ("base", [3.40, 3.41, 3.42], 1e-3), ("other", LOSSES, 2e-3),
    ))  # fmt: skip
    page = ["--output", str(tmp_path / "page.html")]
    assert main(["compare", *map(str, [*base, *other]), "--target", "3.336", *page]) == 0
    said = capsys.readouterr().out
    assert "base: mean held-out loss 3.4100 nats of 3 seeds, not shown to be below" in said
    assert "other: mean held-out loss 3.3100 nats of 5 seeds, below the target" in said
