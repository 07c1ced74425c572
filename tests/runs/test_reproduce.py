"""`cram reproduce`: the configuration of a record is reproduced key by key, and later changes are listed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cram_composer.cli import main
from cram_composer.config.compose import compose
from cram_composer.config.layers import flatten
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import CramError
from cram_composer.runs import reproduce as module
from cram_composer.runs.folder import RECORD_FORMAT
from cram_composer.runs.reproduce import reproduce

ENVIRONMENT = {"python": "3.11.7", "threads": 2, "gpus": [], "libraries": {"torch": "2.7.0"}}
RUNS = [
    ["optimizer.lr=3e-3", "seed=5", "run_name=first"],
    ["recipes=[crammed-bert,rope,muon]", "run_name=first", "budget={tokens: 1e6, steps: 50}"],
    # A recipe on the command line overrides the preset's positions; the overridden keys must not be written out.
    ["recipes=[modern-bert,alibi]", "run_name=first"],
    [
        "recipes=[]",
        "run_name=first",
        "algorithms.ema={}",
        "logging.wandb={project: x}",
        "data.mixture={a: {repeat: 2}}",
    ],
]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "environment", lambda: json.loads(json.dumps(ENVIRONMENT | {"threads": 1})))
    monkeypatch.setenv("CRAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def record(folder: Path, overrides: list[str], **replaced: Any) -> dict[str, Any]:
    """Write the record of a run with this configuration."""
    composed = compose(RunConfig, "yamls/cram-cpu.yaml", overrides)
    values: dict[str, Any] = {
        "format_version": RECORD_FORMAT,
        "run_name": "first",
        "status": "finished",
        "config": composed.plain,
        "provenance": composed.provenance,
        "config_hash": composed.hash,
        "environment": ENVIRONMENT,
        "world_size": 1,
        "data": {},
        **replaced,
    }
    folder.mkdir(exist_ok=True)
    (folder / "record.json").write_text(json.dumps(values))
    return values


@pytest.mark.parametrize("overrides", RUNS)
def test_configuration_is_the_same_except_for_the_name(tmp_path: Path, overrides: list[str]) -> None:
    values = record(tmp_path / "first", overrides)
    made = reproduce(tmp_path / "first")
    again = flatten(compose(RunConfig, made.path, []).plain)
    assert made.config_differences == []
    assert again == flatten(values["config"]) | {"run_name": "first-again"}
    assert compose(RunConfig, made.path, ["run_name=first"]).hash == values["config_hash"]


def test_changed_default_is_written_out(tmp_path: Path) -> None:
    values = record(tmp_path / "first", RUNS[0])
    values["config"]["train"]["max_nonfinite"] = 7  # the default of an older version
    (tmp_path / "first" / "record.json").write_text(json.dumps(values))
    made = reproduce(tmp_path / "first" / "record.json")
    assert made.config_differences == []
    assert compose(RunConfig, made.path, []).config.train.max_nonfinite == 7


@pytest.mark.parametrize("chosen", ["{at: 0.3}", "{at: 0.3, patience: 3}"])
def test_an_early_stop_whose_threshold_was_a_default_is_kept(tmp_path: Path, chosen: str) -> None:
    values = record(tmp_path / "first", [f"train.early_stop={chosen[:-1]}, loss_above: 7.5}}"])
    values["provenance"]["train.early_stop.loss_above"] = "default"  # of an older version
    (tmp_path / "first" / "record.json").write_text(json.dumps(values))
    made = reproduce(tmp_path / "first")
    assert made.config_differences == []
    assert compose(RunConfig, made.path, []).plain["train"]["early_stop"] == values["config"]["train"]["early_stop"]


def test_chosen_microbatch_is_used_again(tmp_path: Path) -> None:
    record(tmp_path / "first", ["train.device_train_microbatch_size=auto"], microbatch={"rows": 8, "device": "a card"})
    made = reproduce(tmp_path / "first")
    assert made.config_differences == []
    assert compose(RunConfig, made.path, []).config.train.device_train_microbatch_size == 8


def test_removed_key_is_listed(tmp_path: Path) -> None:
    values = record(tmp_path / "first", RUNS[0])
    values["config"]["train"]["speed"] = 3
    (tmp_path / "first" / "record.json").write_text(json.dumps(values))
    assert reproduce(tmp_path / "first").config_differences == ["train.speed: 3 in the run, absent here"]


def test_replay_follows_the_trace_instead_of_the_budget(tmp_path: Path) -> None:
    record(tmp_path / "first", RUNS[1])
    with pytest.raises(CramError, match=r"trace\.jsonl: does not exist"):
        reproduce(tmp_path / "first", replay=True)
    step = {"elapsed": 0.0, "progress": 0.0, "tokens": 1, "batch_size": 1, "seq_length": 1, "mlm_probability": 0.25}
    line = {"step": 0, **step, "lr": 0.1, "loss": 9.0, "step_seconds": 1.0, "data_seconds": 0.0}
    (tmp_path / "first" / "trace.jsonl").write_text(json.dumps(line) + "\n")
    made = reproduce(tmp_path / "first", replay=True)
    budget = compose(RunConfig, made.path, []).config.budget
    assert (budget.replay, budget.tokens, budget.steps, budget.wall) == (str(tmp_path / "first"), None, None, None)
    assert made.config_differences == []
    record(tmp_path / "first", RUNS[1], status="interrupted")
    with pytest.raises(CramError, match="did not finish"):
        reproduce(tmp_path / "first", tmp_path / "other.yaml", replay=True)


def test_environment_differences_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = ENVIRONMENT | {"libraries": {"torch": "2.6.0", "apex": "1"}, "gpus": ["NVIDIA A6000"]}
    record(tmp_path / "first", RUNS[0], environment=other, world_size=4)
    assert main(["reproduce", "first"]) == 0
    said = capsys.readouterr().out
    assert "configuration: the same\n" in said
    assert "libraries.torch: '2.6.0' then, '2.7.0' now" in said
    assert "libraries.apex: '1' then, absent now" in said
    assert "gpus: ['NVIDIA A6000'] then, [] now" in said
    assert "threads" not in said
    assert "data: not built yet in" in said
    assert "train:   composer -n 4 -m cram_composer.cli train first-again.yaml" in said


def test_data_differences_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cram_composer.data import manifest

    found = {"name": "starter", "splits": {"train": {"rows": 5}}, "config": {}, "sources": []}
    then = {"name": "starter", "splits": {"train": {"rows": 4}}, "sources": []}
    record(tmp_path / "first", [*RUNS[0], f"data.local={tmp_path}/data"], data=then)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    monkeypatch.setattr(manifest, "load_manifest", lambda root: found)
    assert reproduce(tmp_path / "first").environment_differences == ["data.splits.train.rows: 4 then, 5 now"]


def test_bad_requests_are_one_line_and_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "nothing"]) == 2
    values = record(tmp_path / "first", RUNS[0])
    (tmp_path / "first-again.yaml").write_text("mine")
    assert main(["reproduce", "first"]) == 2
    assert (tmp_path / "first-again.yaml").read_text() == "mine"
    values["config"]["recipes"] = ["gone"]
    (tmp_path / "first" / "record.json").write_text(json.dumps(values))
    assert main(["reproduce", "first", "--output", "new.yaml"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3
    for line, said in zip(errors, ("not a run folder", "already exists", "'gone'"), strict=True):
        assert said in line
    assert not (tmp_path / "new.yaml").exists()


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "a\0b", 5])
def test_name_in_a_record_cannot_lead_out_of_the_folder(tmp_path: Path, name: Any):
    record(tmp_path / "first", ["run_name=first"], run_name=name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CramError, match=r"first/record\.json: run_name: .*, since it may lead out of its folder"):
        reproduce(tmp_path / "first")
    assert sorted(tmp_path.rglob("*")) == before
