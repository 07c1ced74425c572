"""Finding, filtering and listing runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cram_composer.analysis.runs.run import load_run
from cram_composer.analysis.runs.table import budget_text, list_runs, row, table
from cram_composer.cli import main
from cram_composer.errors import CramError


@pytest.fixture
def runs(make_seeds, make_run, tmp_path: Path) -> Path:
    """Three finished runs, one of them with muon, and a running one in a subfolder."""
    paths = [
        *make_seeds("base", [4.25, 4.5]),
        *make_seeds("muon", [4.0], settings={"optimizer.lr": 0.02}, recipes=["crammed-bert", "muon"]),
        make_run("going", running=True),
    ]
    for path in paths:
        folder = tmp_path / "runs" / "deeper"
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    return tmp_path / "runs"


def names(folder: Path, *filters: str) -> list[str]:
    return sorted(run.name for run in list_runs([str(folder), *filters], folder)[0])


def test_filters_are_keys_of_the_configuration_recipes_names_and_states(runs: Path) -> None:
    assert names(runs) == ["base-1", "base-2", "going", "muon-1"]
    assert names(runs, "seed=1") == ["base-1", "muon-1"]
    assert names(runs, "seed=1", "recipe=muon") == ["muon-1"]
    assert names(runs, "recipe=[crammed-bert,muon]") == ["muon-1"]
    assert names(runs, "name=*-1") == ["base-1", "muon-1"]
    assert names(runs, "status=running") == ["going"]
    assert names(runs, "optimizer.lr=2e-2") == ["muon-1"]
    assert names(runs, "model.tie_word_embeddings=true", "seed=2") == ["base-2"]
    assert names(runs, "model.num_hidden_layers=5") == []


def test_invalid_filters_are_refused(runs: Path) -> None:
    with pytest.raises(CramError, match=r"no run has the key 'optimizer\.lrr'; did you mean 'optimizer\.lr'"):
        names(runs, "optimizer.lrr=1")
    with pytest.raises(CramError, match="no such folder"):
        names(runs, "muon")


def test_a_line_has_what_the_record_says(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "name=base-1", "--json"]) == 0
    (values,) = json.loads(capsys.readouterr().out)
    record = json.loads((Path(values["path"]) / "record.json").read_text())
    assert (values["validation_loss"], values["seed"], values["tokens"]) == (4.25, 1, record["tokens"])
    assert values["device_hours"] == pytest.approx(record["ledger"]["inside_total"] / 3600)  # one device
    text = table(list_runs([str(runs), "name=base-1"], runs)[0])
    header, line = text.splitlines()
    assert header.split()[0] == "name"
    for cell in ("base-1", "finished", "crammed-bert+seq-length-warmup", "10 min", "4.2500", "0.167"):
        assert cell in line


def test_a_running_run_is_as_far_as_its_trace_and_clock(runs: Path) -> None:
    (run,) = list_runs([str(runs), "name=going"], runs)[0]
    assert row(run)["tokens"] == run.trace["tokens"][-1] > 0
    assert row(run)["device_hours"] == pytest.approx(run.end / 3600)


def test_folders_that_cannot_be_read_keep_no_other_from_the_list(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "record.json").write_text("{")
    assert main(["runs", str(runs)]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 5
    assert "not valid JSON" in said.err


def test_the_date_is_that_of_the_first_start(make_run) -> None:
    path = make_run(attempts=[{"started_at_step": 0, "started_at": "2026-01-02T03:04:05+00:00"}])
    assert row(load_run(path))["date"] == "2026-01-02T03:04:05+00:00"
    older = make_run()  # its record has no dates
    os.utime(older / "record.json", (1_700_000_000, 1_700_000_000))
    assert row(load_run(older))["date"] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"mode": "count", "tokens": 1.2e6, "steps": 500}, "1.2 M tokens, 500 steps"),
        ({"mode": "replay", "steps": 80}, "replay of 80 steps"),
        ({}, "not measured"),
    ],
)
def test_budgets_in_words(make_run, budget: dict, said: str) -> None:
    run = load_run(make_run(), curves=False)
    run.record["budget"] = budget
    assert budget_text(run) == said
