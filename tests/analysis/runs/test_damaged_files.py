"""Damaged files of a run: one line that names the file, and the other runs are still shown."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cram_composer.analysis.runs.run import load_run
from cram_composer.cli import main

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "binary": lambda content: b"\x00\xff\xfe\x80" * 64 + b"\n",
    "number": lambda content: b"5\n",
    "list": lambda content: b"[{}]\n",
    "foreign": lambda content: b'{"format_version": 2, "step": "x", "inside": 3, "loss": "low", "status": 7}\n',
    "huge": lambda content: b'{"step": 1' + b"0" * 400 + b', "elapsed": 1e999, "tokens": 0}\n',
    "nested": lambda content: b"[" * 100_000 + b"\n",
}
LINES = ("trace.jsonl", "metrics.jsonl")
COMMANDS = {
    "runs": ["runs", "runs"],
    "report": ["report", "runs/good-1", "runs/bad", "runs/good-2"],
    "compare": ["compare", "good=runs/good-1", "other=runs/[bg]*[!1]", "--json"],
    "compare by configuration": ["compare", "runs", "--json"],
}


@pytest.fixture(scope="module")
def whole_runs(make_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two good runs of different settings and one to damage."""
    folder = tmp_path_factory.mktemp("whole")
    for name, rate in (("good-1", 1e-3), ("good-2", 2e-3), ("bad", 2e-3)):
        path = make_run(step_seconds=10.0)
        record = json.loads((path / "record.json").read_text()) | {"run_name": name}
        record["config"] |= {"optimizer": record["config"]["optimizer"] | {"lr": rate}}
        (path / "record.json").write_text(json.dumps(record))
        shutil.copytree(path, folder / name)
    return folder


@pytest.fixture
def runs(whole_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the runs to `runs/` in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cram_composer.analysis.figures.over_time.draw_all", lambda runs: [])
    monkeypatch.setattr(
        "cram_composer.analysis.report.report._render", lambda runs, figures, _: " ".join(run.name for run in runs)
    )
    return Path(shutil.copytree(whole_runs, tmp_path / "runs"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["record.json", "clock.json", "evaluations.json", *LINES])
def test_a_damaged_file_does_not_hide_the_other_runs(
    runs: Path, command: str, damage: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = runs / "bad" / name
    if name == "clock.json":  # only that of a running run is read
        record = json.loads((runs / "bad" / "record.json").read_text())
        (runs / "bad" / "record.json").write_text(json.dumps(record | {"status": "running"}))
    whole = file.read_bytes() if file.is_file() else b'{"inside": {"train": 3.0}, "step": 2, "clean": false}'
    file.write_bytes(DAMAGES[damage](whole))
    status = main(COMMANDS[command])
    output, errors = capsys.readouterr()
    assert status == 0 and "Traceback" not in errors
    if name not in LINES:
        (told,) = [line for line in (output + errors).splitlines() if name in line]
        assert "left out" in told and f"runs/bad/{name}: " in told and ";" in told
    if command == "report":
        assert all(good in Path("report.html").read_text() for good in ("good-1", "good-2"))
    elif command == "runs":
        assert "good-1" in output and "good-2" in output


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["record.json", "evaluations.json"])
def test_a_report_of_only_a_damaged_run_is_one_line(runs: Path, damage: str, name: str, capsys) -> None:
    file = runs / "bad" / name
    file.write_bytes(DAMAGES[damage](file.read_bytes() if file.is_file() else b'{"glue": {}}'))
    assert main(["report", "runs/bad"]) == 2
    assert capsys.readouterr().err.startswith(f"error: runs/bad/{name}: ")
    assert not (runs / "bad" / "report.html").exists()


@pytest.mark.parametrize("name", LINES)
def test_a_damaged_line_loses_only_itself(runs: Path, name: str) -> None:
    lines = (runs / "bad" / name).read_text().splitlines(keepends=True)
    damaged = [b"5\n", b'{"step": 1, "elapsed": "x", "tokens": 2}\n', b"\xff\n", lines[3].encode(), b'{"step": \n']
    content = [line.encode() for line in lines]
    content[1:1] = damaged
    (runs / "bad" / name).write_bytes(b"".join(content))
    run = load_run(runs / "bad")
    assert run.unreadable_lines == 4
    assert (len(run.metrics) if name == "metrics.jsonl" else run.steps) == len(lines) + 1
