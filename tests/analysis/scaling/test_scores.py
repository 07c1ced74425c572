"""Scores against losses: a known line, and runs that are not enough for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cram_composer.analysis.runs.run import RunData, load_run
from cram_composer.analysis.scaling.scores import score_trends
from cram_composer.cli import main
from cram_composer.errors import CramError
from cram_composer.runs.folder import EVALUATIONS
from tests.analysis.conftest import MakeRun

LOSSES = [3.0, 3.2, 3.4, 3.6, 3.8]


def evaluated(make_run: MakeRun, name: str, scores: list[float], **replaced: Any) -> list[RunData]:
    found = []
    for number, (loss, score) in enumerate(zip(LOSSES, scores, strict=False)):
        path = make_run(f"{name}-{number}", budget=20.0, metrics={"validation_loss": loss}, **replaced)
        numbers = [{"title": "CoLA", "task": "cola", "median": score, "partial": [], "seeds": {}}]
        (path / EVALUATIONS).write_text(json.dumps({"glue-compact": {"numbers": numbers, "averages": {}, "notes": []}}))
        found.append(load_run(path))
    return found


def test_a_line_of_scores_is_found(make_run: MakeRun) -> None:
    """60 - 20 x loss: two points for every 0.1 nats."""
    (trend,) = score_trends(evaluated(make_run, "line", [60 - 20 * loss for loss in LOSSES]), "glue-compact", 2.5)
    assert (trend.title, trend.runs) == ("CoLA", 5)
    assert trend.gain == pytest.approx((2.0, 2.0, 2.0)) and trend.correlation == pytest.approx(-1.0)
    assert trend.expected == pytest.approx((10.0, 10.0, 10.0))


def test_the_interval_is_that_of_least_squares(make_run: MakeRun) -> None:
    scores = [10.0, 7.0, 8.0, 3.0, 4.0]
    (trend,) = score_trends(evaluated(make_run, "noise", scores), "glue-compact")
    from scipy.stats import linregress, t

    expected = linregress(LOSSES, scores)
    half = t.ppf(0.975, 3) * expected.stderr
    assert trend.gain == pytest.approx(
        tuple(-0.1 * np.array([expected.slope, expected.slope + half, expected.slope - half]))
    )
    assert trend.correlation == pytest.approx(expected.rvalue) and trend.expected is None


def test_minimal_pairs_are_scores_whatever_their_ties(make_run: MakeRun) -> None:
    runs = evaluated(make_run, "pairs", [0.0] * 5)
    for number, run in enumerate(runs):
        row = {
            "kind": "minimal-pairs",
            "overall": 70.0 - 5 * LOSSES[number],
            "notes": [f"{number} of 9 pairs are ties"],
        }
        run.evaluated["minimal-pairs"] = row
    (trend,) = score_trends(runs, "minimal-pairs")
    assert trend.title == "minimal pairs" and trend.gain[0] == pytest.approx(0.5)


def test_other_settings_of_fine_tuning_are_refused(make_run: MakeRun) -> None:
    runs = evaluated(make_run, "other", [1.0, 2.0, 3.0, 4.0, 5.0])
    runs[2].evaluated["glue-compact"]["notes"] = ["fine-tuned differently: epochs 2"]
    with pytest.raises(CramError, match="fine-tuned with different settings"):
        score_trends(runs, "glue-compact")


def test_three_runs_are_refused(make_run: MakeRun) -> None:
    runs = evaluated(make_run, "few", [1.0, 2.0, 3.0])
    with pytest.raises(CramError, match="--scores glue-compact: 3 of these runs have such scores, and 4"):
        score_trends(runs, "glue-compact")
    with pytest.raises(CramError, match="--scores glue: 0 of these runs"):
        score_trends(runs, "glue")


def test_the_command_prints_the_scores(make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in evaluated(make_run, "shown", [60 - 20 * loss for loss in LOSSES]):
        run.path.rename(tmp_path / run.path.name)
    page = tmp_path / "page.html"
    assert main(["scaling-law", str(tmp_path), "--scores", "glue-compact", "--output", str(page)]) == 0
    assert "+2.00" in capsys.readouterr().out and "Scores against the loss" in page.read_text(encoding="utf-8")
    assert main(["scaling-law", str(tmp_path), "--scores", "glue-compact", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"][0]["gain"][0] == pytest.approx(2.0)
