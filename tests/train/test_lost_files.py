"""Resuming a run whose files are damaged, or that lost a reader process."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from unittest import mock

import pytest

from cram_composer.cli import main
from cram_composer.data.loading.block_reader import ReaderKilledError, reader_killed
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.errors import CramError
from cram_composer.runs.folder import RunFolder
from tests.analysis.runs.test_damaged_files import DAMAGES
from tests.tiny_runs import TinyRuns, compose_tiny, losses, record, run_tiny


def data_of(run: Path) -> Path:
    return Path(record(run)["config"]["data"]["local"])


@pytest.fixture
def stopped(plain_run: Path, tmp_path: Path) -> RunFolder:
    """Copy a run of ten steps as if it was killed at its end, with its last two checkpoints."""
    path = Path(shutil.copytree(plain_run, tmp_path / "stopped"))
    for file in (path / "checkpoints").iterdir():
        if int(file.stem.split("-")[1]) < 9:
            file.unlink()
    (path / "record.json").write_text(json.dumps(record(path) | {"status": "running"}))
    return RunFolder(path)


def test_no_intact_checkpoint_is_not_a_silent_start_from_step_0(stopped: RunFolder) -> None:
    from cram_composer.train.checkpointing import find_checkpoint

    newest, older = (stopped.checkpoints / f"step-{step:08d}.pt" for step in (10, 9))
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=r"step-00000010\.pt: truncated .*; using the checkpoint before it"):
        assert find_checkpoint(stopped).step == 9
    older.write_bytes(older.read_bytes()[::-1])
    with pytest.raises(CramError) as caught:
        find_checkpoint(stopped)
    text = str(caught.value)
    assert text.startswith(f"{stopped.checkpoints}: no intact checkpoint (step-00000010.pt truncated (")
    assert "step-00000009.pt corrupt" in text and "10 steps and " in text and "--restart" in text
    assert "\n" not in text
    shutil.rmtree(stopped.checkpoints)
    with pytest.raises(CramError, match=r"no intact checkpoint \(that of step 10 is missing\).* --restart"):
        find_checkpoint(stopped)


def test_an_interrupted_first_save_starts_from_step_0(stopped: RunFolder) -> None:
    from cram_composer.train.checkpointing import find_checkpoint

    for file in stopped.checkpoints.iterdir():
        if file.name != "step-00000009.pt":
            file.unlink()
    (stopped.path / "clock.json").unlink()
    assert find_checkpoint(stopped) is None


@pytest.mark.parametrize("damage", DAMAGES)
def test_metadata_of_a_checkpoint_that_cannot_be_used(stopped: RunFolder, damage: str) -> None:
    from cram_composer.train.checkpointing import find_checkpoint

    metadata = stopped.checkpoints / "step-00000010.json"
    metadata.write_bytes(DAMAGES[damage](metadata.read_bytes()))
    with pytest.warns(UserWarning, match=r"step-00000010\.pt: unreadable .*; using the checkpoint before it"):
        assert find_checkpoint(stopped).step == 9


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_clock_is_one_line(stopped: RunFolder, damage: str) -> None:
    clock = stopped.path / "clock.json"
    clock.write_bytes(DAMAGES[damage](clock.read_bytes()))
    with pytest.raises(CramError) as caught:
        stopped.read_clock()
    assert str(caught.value).startswith(f"{clock}: damaged (") and "delete it" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resume_drops_only_the_damaged_lines_of_the_trace(tiny_run: TinyRuns, stopped: RunFolder) -> None:
    trace = stopped.path / "trace.jsonl"
    lines = trace.read_bytes().splitlines(keepends=True)
    lines[3:5] = [b"\xff\x00\n", b"5\n"]
    trace.write_bytes(b"".join(lines) + b'{"step": 1')
    for name in ("step-00000010.pt", "step-00000010.json"):
        (stopped.checkpoints / name).unlink()
    (stopped.path / "clock.json").unlink()
    tiny_run.continue_run(stopped.path, compose_tiny(data_of(stopped.path)))
    steps = [json.loads(line)["step"] for line in trace.read_text().splitlines()]
    assert steps == [0, 1, 2, 5, 6, 7, 8, 9]


def test_restart_sets_the_earlier_files_aside(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    from cram_composer.train import launch

    started: list[tuple[list[str], object]] = []

    def run(composed, device, folder, previous, at) -> int:
        started.append((sorted(path.name for path in folder.path.iterdir()), previous))
        return 0

    monkeypatch.setattr("cram_composer.train.loop.run", run)
    monkeypatch.setattr(launch, "probe_vector_instructions", lambda: None)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "cram-cpu"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "record.json").write_text("{")
    command = ["train", "yamls/cram-cpu.yaml", "device=cpu"]
    assert main(command) == 2
    assert "runs/cram-cpu/record.json: damaged" in (text := capsys.readouterr().err) and "--restart" in text
    assert main([*command, "--restart"]) == 0
    assert started == [([".lock", ".lock-holder"], None)]
    aside = tmp_path / "runs" / ".cram-cpu.before-restart"
    assert "the earlier files are in runs/.cram-cpu.before-restart" in capsys.readouterr().out
    assert sorted(path.name for path in aside.iterdir()) == ["checkpoints", "record.json"]
    (folder / "clock.json").write_text("new")
    assert main([*command, "--restart"]) == 0
    assert [path.name for path in aside.iterdir()] == ["clock.json"]
    assert main([*command, "--restart", "runs_remote=s3://bucket/runs"]) == 2
    assert "--restart: would mix two runs in runs_remote" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 4711) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 4711) exited unexpectedly",
        "DataLoader worker (pid 4711) exited unexpectedly with exit code 1. Details are lost due to multiprocessing.",
    ],
)
def test_every_report_of_a_killed_reader_is_recognised(text: str) -> None:
    assert "(pid 4711) was killed" in str(reader_killed(RuntimeError(text)))
    assert reader_killed(RuntimeError("DataLoader timed out after 300 seconds")) is None
    assert reader_killed(error := ReaderKilledError("killed")) is error


def train_and_kill_reader(data: Path, path: Path) -> str:
    """Train, killing the reader process at the fifth step; return the error."""
    draw = TrainLoader._next_batch

    def draw_and_kill(loader: TrainLoader):
        if loader.step == 4:
            loader.stream._results._workers[0].kill()
            time.sleep(5.0)  # until SIGCHLD arrives, whose handler raises
        return draw(loader)

    with (
        mock.patch.object(TrainLoader, "_next_batch", draw_and_kill),
        pytest.raises(ReaderKilledError) as caught,
    ):
        run_tiny(compose_tiny(data, "data.num_workers=1"), path)
    return str(caught.value)


def test_a_killed_reader_interrupts_a_run_that_resumes(tiny_run: TinyRuns, plain_run: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "run", data_of(plain_run)
    text = tiny_run.call(train_and_kill_reader, data, path)
    assert "\n" not in text and "run the same command to resume" in text
    assert (record(path)["status"], record(path)["reason"]) == ("interrupted", text)
    tiny_run.continue_run(path, compose_tiny(data, "data.num_workers=1"))
    assert record(path)["status"] == "finished"
    assert [attempt["reason"] for attempt in record(path)["attempts"]] == ["interrupted", "finished"]
    assert record(path)["attempts"][1]["started_at_step"] == 4
    assert losses(path) == losses(plain_run)
