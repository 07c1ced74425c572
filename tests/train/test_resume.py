"""Keys that may change when a run resumes, keys that are fixed, and runs that resume in another place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from cram_composer.analysis.report.report import write_report
from cram_composer.commands.train import _run_folder
from cram_composer.config import Composed, compose_run
from cram_composer.config.identity import learnt_values
from cram_composer.config.layers import flatten, unflatten
from cram_composer.config.schema.introspect import is_free_key
from cram_composer.config.schema.run import EarlyStopConfig, RunConfig
from cram_composer.errors import CramError
from cram_composer.train.export import export_run
from cram_composer.train.launch import check_same
from tests.conftest import REPOSITORY
from tests.tiny_runs import TinyRuns, compose_tiny, interrupted_copy, losses, record, run_tiny

# The batch ramp moves in whole microbatches.
COMMON = ["algorithms.batch_size_ramp=null", "schedule.name=constant", "eval.interval=0.5"]


@pytest.fixture(scope="module")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    return TinyRuns(tiny_data, tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def whole(runs: TinyRuns) -> Path:
    return runs("whole", *COMMON)


def free_keys() -> set[str]:
    """Return all free keys, with those of sections that are null by default."""
    config = RunConfig().model_dump(mode="json")
    config["train"]["early_stop"] = EarlyStopConfig(patience=1).model_dump()
    return {key for key in flatten(config) if is_free_key(RunConfig, key.split("."))}


def resume_with_loggers(composed: Composed, path: Path) -> None:
    from composer.loggers import InMemoryLogger

    with (
        mock.patch("composer.loggers.WandBLogger", InMemoryLogger),
        mock.patch("composer.loggers.MLFlowLogger", InMemoryLogger),
    ):
        run_tiny(composed, path)


def test_all_free_keys_change_at_once(whole: Path, runs: TinyRuns, tiny_data: Path, tmp_path: Path) -> None:
    moved = interrupted_copy(whole, tmp_path / "there" / "moved")
    remote = shutil.copytree(tiny_data, tmp_path / "remote")
    (remote / "tokenizer" / "special_tokens_map.json").touch()  # transformers 5 writes none
    changes = {
        "run_name": "moved",
        "runs_dir": str(tmp_path / "there"),
        "runs_remote": str(tmp_path / "bucket"),
        "data.local": str(tmp_path / "cache"),
        "data.remote": str(remote),
        "data.mirror": str(remote),
        "data.cache_limit": "10mb",
        "data.deadline": "20s",
        "data.prefetch": 3,
        "data.build": str(REPOSITORY / "yamls" / "data" / "paper.yaml"),
        "data.build_if_missing": False,
        "data.num_workers": 2,
        "data.timeout": "4m",
        "data.verify": "size",
        "train.device_train_microbatch_size": 8,
        "train.compile": "regional",
        "train.threads": 2,
        "train.early_stop.loss_above": 100.0,
        "train.early_stop.at": 0.7,
        "train.early_stop.patience": 50,
        "train.early_stop.min_delta": 0.1,
        "train.profile": 2,
        "notify": "exit 0",
        "eval.batch_size": 8,
        "checkpoint.interval": "0.00001s",
        "checkpoint.keep": 3,
        "checkpoint.branch_at": [0.8],
        "logging.progress_bar": False,
        "logging.tensorboard": True,
        "logging.wandb": {},
        "logging.mlflow": {},
        "export.enabled": True,
        "export.sentences": ["ba [MASK] ke"],
    }
    assert changes.keys() == free_keys(), "a free key is declared but not tested here"
    composed = compose_tiny(tiny_data, *COMMON, *(f"{key}={_as_yaml(value)}" for key, value in changes.items()))
    before = flatten(record(whole)["config"])
    unchanged = {key for key, value in flatten(composed.plain).items() if before.get(key) == value}
    assert not unchanged & changes.keys()

    runs.call(resume_with_loggers, composed, moved)
    assert losses(moved) == pytest.approx(losses(whole), abs=1e-5)  # compiled, in other microbatches
    ended = record(moved)
    assert ended["status"] == "finished"
    assert ended["metrics"]["validation_loss"] == pytest.approx(record(whole)["metrics"]["validation_loss"], abs=1e-5)
    attempt = ended["attempts"][-1]
    assert attempt["started_at_step"] == 4
    assert attempt["changes"].keys() >= changes.keys()
    assert attempt["changes"]["data.num_workers"] == {"before": 0, "after": 2}
    assert (moved / "export" / "model.safetensors").is_file()
    assert (tmp_path / "bucket" / "moved" / "export" / "model.safetensors").is_file()


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def test_every_fixed_key_is_refused_and_every_free_key_is_not(tiny_data: Path) -> None:
    ramp, stop = "algorithms.batch_size_ramp.initial_batch_size=16", "train.early_stop={loss_above: 9}"
    composed = compose_tiny(tiny_data, ramp, stop)
    fixed = learnt_values(composed.plain)
    for key in flatten(composed.plain):
        earlier = {"config": unflatten(flatten(composed.plain) | {key: "other"})}
        if key not in fixed:
            check_same(earlier, composed, "runs/r")
            continue
        with pytest.raises(CramError, match=f"another configuration \\({key}\\); set run_name=") as error:
            check_same(earlier, composed, "runs/r")
        assert "\n" not in str(error.value)
    assert {"seed", "budget.steps", "optimizer.lr", "train.batch_size", "model.hidden_size", "data.order"} < set(fixed)


def test_keys_that_an_older_version_lacked_had_their_default(tiny_data: Path) -> None:
    composed = compose_tiny(tiny_data)
    older = flatten(composed.plain)
    assert older.pop("data.order") == "auto"
    check_same({"config": unflatten(older), "config_hash": "of all keys"}, composed, "runs/r")


def test_moved_folder_exports_and_reports(whole: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(whole, tmp_path / "first" / "run")
    moved = copy.rename(tmp_path / "run")
    assert export_run(moved, None) == moved / "export"
    assert write_report([moved]) == moved / "report.html"
    assert not copy.exists()


def test_yaml_in_a_run_folder_trains_there(whole: Path, tmp_path: Path) -> None:
    yaml = tmp_path / "moved" / "branch.yaml"
    yaml.parent.mkdir()
    yaml.write_text(f"run_name: old\nruns_dir: {tmp_path / 'before'}\nbudget: 1m\ndata: {{local: x}}\n")
    assert _run_folder(compose_run(yaml, []), yaml) == tmp_path / "before" / "old"  # not beside a record
    shutil.copyfile(whole / "record.json", yaml.with_name("record.json"))
    assert _run_folder(compose_run(yaml, []), yaml) == yaml.parent
    assert _run_folder(compose_run(yaml, ["run_name=new"]), yaml) == tmp_path / "before" / "new"


def test_another_data_set_is_refused(whole: Path, runs: TinyRuns, tiny_data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_data, other)
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"seed": manifest["seed"] + 1}))
    killed = interrupted_copy(whole, tmp_path / "killed")
    with pytest.raises(CramError, match="not the data set of .*killed"):
        runs.continue_run(killed, compose_tiny(tiny_data, *COMMON, f"data.local={other}"))
    assert record(killed)["status"] == "running"
