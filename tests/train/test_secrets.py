"""Credentials of a run are in none of its files and in nothing that a command prints."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from composer.loggers import LoggerDestination

from cram_composer.cli import main
from cram_composer.config.redaction import is_redacted, redact, redact_text
from cram_composer.runs.reproduce import reproduce
from tests.tiny_runs import TinyRuns, compose_tiny, record, run_tiny

SECRET = "Hunter2/Sesame"
ARGUMENTS = {
    "project": "visible",
    "api_key": f"{SECRET}1",
    "init_kwargs": {"Password": f"{SECRET}2", "settings": {"base_url": f"https://me:{SECRET}3@host:8080/x"}},
    "tags": ["visible", f"https://me:{SECRET}4@host"],
}


def _train(data: Path, path: Path) -> None:
    os.environ["AWS_SECRET_ACCESS_KEY"] = f"{SECRET}5"
    os.environ["WANDB_API_KEY"] = f"{SECRET}6"
    given: dict[str, object] = {}

    def build(name: str, logger: object, arguments: dict[str, object]) -> LoggerDestination:
        given.update(arguments)
        return LoggerDestination()

    with mock.patch("cram_composer.train.loggers._optional", build), mock.patch.dict("os.environ"):
        run_tiny(compose_tiny(data, f"logging.wandb={ARGUMENTS}", "export.enabled=true"), path)
    assert given == ARGUMENTS  # the logger itself gets them


def test_no_file_of_a_run_and_no_output_has_its_secrets(
    tiny_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "runs" / "r"
    TinyRuns(tiny_data, run.parent).call(_train, tiny_data, run)
    assert record(run)["config"]["logging"]["wandb"]["api_key"] == "***"
    assert record(run)["config"]["logging"]["wandb"]["project"] == "visible"
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(run)]) == 0
    assert main(["runs", str(run.parent), "--json"]) == 0
    assert main(["explain", "yamls/cram-cpu.yaml", f"logging.wandb={ARGUMENTS}", "logging.wandb.api_key=other"]) == 0
    made = reproduce(run)
    assert "logging.wandb.api_key: '***' in the run, absent here" in made.config_differences
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"record.json", "config.yaml", "report.html", "r-again.yaml"} <= {path.name for path in files}
    assert [path for path in files if b"Hunter2" in path.read_bytes()] == []
    printed = capfd.readouterr()
    assert "visible" in printed.out and "Hunter2" not in printed.out + printed.err


@pytest.mark.parametrize("key", ["runs_remote", "data.remote"])
@pytest.mark.parametrize("uri", [f"s3://me:{SECRET}@bucket/runs", f"s3://{SECRET[:7]}@bucket", f"s3://me:{SECRET}"])
def test_uri_with_credentials_is_refused_without_repeating_them(
    key: str, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "yamls/cram-cpu.yaml", f"{key}={uri}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must not contain credentials; set AWS_ACCESS_KEY_ID" in line and "Hunter2" not in line


def test_only_credentials_are_redacted() -> None:
    config = {
        "budget": {"tokens": 5},
        "runs_remote": "s3://bucket/a@b",
        "data": {"mixture": {"key": {"repeat": 2}}},
        "logging": {"wandb": None, "mlflow": {"tracking_uri": "http://host:5000/a@b", "token": None}},
    }
    assert redact(config) == config
    assert redact_text("error at http://a:b@c/d, then x@y") == "error at http://***@c/d, then x@y"
    assert is_redacted("***") and is_redacted("http://***@c") and not is_redacted("**") and not is_redacted(3)
