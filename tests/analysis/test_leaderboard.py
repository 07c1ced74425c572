"""Entries of the leaderboard: what they keep of a run, and the page made of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.leaderboard import FOLDER, PAGE, add_entry, page, without_folders
from cram_composer.analysis.compare.compare import compare
from cram_composer.analysis.compare.groups import read_groups
from cram_composer.errors import CramError
from cram_composer.runs.folder import EVALUATIONS, RECORD, ROW_LOSSES
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
    scores = {
        "numbers": [
            {"task": "cola", "title": "CoLA", "median": 7.5},
            {"task": "mrpc", "title": "MRPC F1", "median": 80.0},
            {"task": "mrpc", "title": "MRPC acc", "median": 70.0},
        ]
    }
    (run / EVALUATIONS).write_text(
        json.dumps({"glue-compact": scores, "minimal-pairs": {"kind": "minimal-pairs", "overall": 60.44}})
    )
    add_entry(run, tmp_path / "board" / "best", "composer train.py mine.yaml")
    kept = json.loads((tmp_path / "board" / "best" / RECORD).read_text())
    assert kept["config"]["data"]["path"] == "starter" and kept["command"] == "composer train.py mine.yaml"
    text = page(tmp_path / "board")
    (row,) = [line for line in text.splitlines() if line.startswith("| best |")]
    assert "| 60.4 | glue-compact: CoLA 7.5, MRPC F1 80.0; mean 43.8 |" in row
    assert "composer train.py mine.yaml  # best" in text


def test_paths_are_shortened_wherever_they_are() -> None:
    value = {"a": ["/home/me/x", {"b": "~/data/y"}], "c": "s3://bucket/z", "d": 1, "e": None}
    assert without_folders(value) == {"a": ["x", {"b": "y"}], "c": "s3://bucket/z", "d": 1, "e": None}


def test_only_comparable_runs_are_ranked_together(make_seeds: MakeSeeds, tmp_path: Path) -> None:
    (first,), (second,) = make_seeds("board-first", [3.5]), make_seeds("board-second", [3.25])
    (other,) = make_seeds("board-other", [3.0], settings={"objective.shift": True})
    for run, name in ((first, "first"), (second, "second"), (other, "other")):
        add_entry(run, tmp_path / "board" / name, "composer train.py mine.yaml")
    sections = page(tmp_path / "board").split("\n## ")
    ranked = [re.findall(r"^\| (first|second|other) \|", section, re.MULTILINE) for section in sections]
    assert sorted(filter(None, ranked)) == [["other"], ["second", "first"]]


def test_a_run_compares_with_an_entry(make_seeds: MakeSeeds, tmp_path: Path) -> None:
    (holder,) = make_seeds("board-holder", [3.5])
    np.save(holder / ROW_LOSSES, np.array([[7.0, 2.0], [8.0, 2.0]], dtype=np.float32))
    (mine,) = make_seeds("board-mine", [3.25], settings={"optimizer.name": "muon"})
    np.save(mine / ROW_LOSSES, np.array([[6.0, 2.0], [8.0, 2.0]], dtype=np.float32))
    add_entry(holder, tmp_path / "board" / "best", "composer train.py mine.yaml")
    groups = read_groups([str(mine), str(tmp_path / "board" / "best")])
    (pair,) = compare(groups, groups[1])
    assert pair.rules.refusals == [] and pair.rows[0].difference.mean == pytest.approx(-0.25)
    assert any(row.measure.endswith("2 rows as the sample") for row in pair.rows)


def test_an_unfinished_run_is_no_entry(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(CramError, match="only finished runs from scratch are ranked"):
        add_entry(make_run("board-running", running=True), tmp_path / "board" / "best", "composer train.py mine.yaml")
    assert not (tmp_path / "board").exists()
