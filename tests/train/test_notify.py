"""The command that is run when a run has ended."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from cram_composer.config.layers import flatten
from cram_composer.errors import CramError
from cram_composer.runs.folder import RunFolder
from cram_composer.runs.reproduce import recompose
from cram_composer.train import launch, notify
from tests.tiny_runs import compose_tiny

COMMAND = 'printf "%s|%s|%s" "$CRAM_RUN" "$CRAM_STATUS" "$CRAM_REASON" > "$(dirname "$CRAM_RUN")/told"'


def write_record(path: Path, status: str, reason: str | None) -> None:
    path.mkdir(exist_ok=True)
    (path / "record.json").write_text(
        json.dumps({"format_version": 2, "status": status, "reason": reason, "config": {}})
    )


@pytest.mark.parametrize(("status", "reason"), [("finished", None), ("stopped-early", "loss 8 is above 7")])
def test_a_run_that_ends_tells_its_outcome(tmp_path: Path, monkeypatch, status: str, reason: str | None):
    run = tmp_path / "r"

    def train(*_: object) -> int:
        write_record(run, status, reason)
        return 3

    monkeypatch.setattr("cram_composer.train.loop.run", train)
    assert launch.start(compose_tiny(tmp_path, f"notify={json.dumps(COMMAND)}"), run) == 3
    assert (tmp_path / "told").read_text() == f"{run}|{status}|{reason or ''}"


def test_a_failure_tells_its_cause(tmp_path: Path, monkeypatch):
    def fail(*_: object) -> int:
        raise CramError("the disk is full\nmore")

    monkeypatch.setattr("cram_composer.train.loop.run", fail)
    with pytest.raises(CramError, match="the disk is full"):
        launch.start(compose_tiny(tmp_path, f"notify={json.dumps(COMMAND)}"), tmp_path / "r")
    assert (tmp_path / "told").read_text() == f"{tmp_path / 'r'}|failed|the disk is full"


def test_a_command_that_fails_costs_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "r", "finished", None)
    with notify.notifying("exit 7", RunFolder(tmp_path / "r")):
        pass
    assert capfd.readouterr().out == "notify: the command failed with exit status 7\n"


def test_a_run_that_stands_still_tells_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "STALL_SECONDS", 0.2)
    write_record(tmp_path / "r", "running", None)
    with notify.notifying('echo "$CRAM_STATUS $CRAM_REASON" >> told', RunFolder(tmp_path / "r")):
        monkeypatch.chdir(tmp_path)
        time.sleep(1.0)
    assert (tmp_path / "told").read_text().splitlines() == ["stalled no step for 0 s", "running "]


def test_a_clock_that_still_beats_does_not_hide_a_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "STALL_SECONDS", 0.4)
    monkeypatch.chdir(tmp_path)
    write_record(tmp_path / "r", "running", None)
    with notify.notifying('echo "$CRAM_STATUS" >> told', RunFolder(tmp_path / "r")):
        for _ in range(20):
            (tmp_path / "r" / "clock.json").write_text("{}")
            time.sleep(0.05)
    assert (tmp_path / "told").read_text().splitlines() == ["stalled", "running"]


def test_steps_are_no_stall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "STALL_SECONDS", 2.0)
    monkeypatch.chdir(tmp_path)
    write_record(tmp_path / "r", "running", None)
    with notify.notifying('echo "$CRAM_STATUS" >> told', RunFolder(tmp_path / "r")):
        for _ in range(30):
            (tmp_path / "r" / "trace.jsonl").write_text("{}")
            time.sleep(0.1)
    assert (tmp_path / "told").read_text().splitlines() == ["running"]


def test_a_command_is_neither_recorded_nor_taken_from_a_record(tmp_path: Path) -> None:
    composed = compose_tiny(tmp_path, "notify=curl https://example.com/hook/SECRET")
    assert "SECRET" not in json.dumps(composed.plain)
    values, again = recompose(flatten(composed.plain) | {"notify": "touch owned"}, composed.provenance)
    assert "notify" not in values and again.config.notify is None
