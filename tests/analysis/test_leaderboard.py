"""Entries of the leaderboard: what they keep of a run, and the page made of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.leaderboard import FOLDER, PAGE, add_entry, page
from cram_composer.analysis.compare.compare import compare
from cram_composer.analysis.compare.groups import read_groups
from cram_composer.errors import CramError
from cram_composer.runs.folder import EVALUATIONS, RECORD
from tests.analysis.conftest import MakeRun, MakeSeeds


def test_the_page_is_that_of_the_entries() -> None:
    assert PAGE.read_text() == page(FOLDER)


def test_no_entry_names_a_folder_of_its_machine() -> None:
    for path in FOLDER.glob("*/*.json"):
        assert '"/' not in path.read_text() and '"~' not in path.read_text(), path


def test_an_entry_keeps_the_record_without_folders(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("board-mine")
    record = json.loads((run / RECORD).read_text())
    record["config"]["data"]["path"] = "/home/me/data/starter"
    (run / RECORD).write_text(json.dumps(record))
    scores = {"numbers": [{"title": "CoLA", "median": 7.5}, {"title": "RTE", "median": 52.7}]}
    (run / EVALUATIONS).write_text(
        json.dumps({"glue-compact": scores, "minimal-pairs": {"kind": "minimal-pairs", "overall": 60.44}})
    )
    add_entry(run, tmp_path / "board" / "best", "composer train.py mine.yaml")
    kept = json.loads((tmp_path / "board" / "best" / RECORD).read_text())
    assert kept["config"]["data"]["path"] == "starter" and kept["command"] == "composer train.py mine.yaml"
    text = page(tmp_path / "board")
    (row,) = [line for line in text.splitlines() if line.startswith("| [best]")]
    assert "| 60.4 | glue-compact: CoLA 7.5, RTE 52.7; mean 30.1 |" in row
    assert "composer train.py mine.yaml  # best" in text


def test_a_run_compares_with_an_entry(make_seeds: MakeSeeds, tmp_path: Path) -> None:
    (holder,) = make_seeds("board-holder", [3.5])
    (mine,) = make_seeds("board-mine", [3.25], settings={"optimizer.name": "muon"})
    add_entry(holder, tmp_path / "board" / "best", "composer train.py mine.yaml")
    groups = read_groups([str(mine), str(tmp_path / "board" / "best")])
    (pair,) = compare(groups, groups[1])
    assert pair.rules.refusals == [] and pair.rows[0].difference.mean == pytest.approx(-0.25)


def test_an_unfinished_run_is_no_entry(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(CramError, match="only finished runs from scratch are ranked"):
        add_entry(make_run("board-running", running=True), tmp_path / "board" / "best", "composer train.py mine.yaml")
    assert not (tmp_path / "board").exists()
