"""One form of message for a full disk, whichever library reports it."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

import pytest

from cram_composer.budget.trace import JsonLines
from cram_composer.cli import main
from cram_composer.errors import CramError
from cram_composer.storage.files import DiskFullError, naming_full_disk, write_atomic

MESSAGE = "{path}: the disk is full; free some space, then run the same command again"


def test_line_that_the_disk_does_not_take(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.symlink_to("/dev/full")
    with pytest.raises(DiskFullError) as full:
        JsonLines(trace).append({"step": 1})
    assert str(full.value) == MESSAGE.format(path=trace)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"),
    ],
)
def test_errors_of_libraries(error: Exception, tmp_path: Path) -> None:
    file = tmp_path / "missing" / "model.safetensors"
    full_disk = mock.patch("shutil.disk_usage", return_value=mock.Mock(free=0))
    with full_disk, pytest.raises(CramError) as full, naming_full_disk(file):
        raise error
    assert str(full.value) == MESSAGE.format(path=file)


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (RuntimeError("PytorchStreamWriter failed writing file"), OSError(errno.EACCES, "denied")):
        with pytest.raises(type(error)) as same, naming_full_disk(tmp_path):
            raise error
        assert same.value is error


def test_failed_write_leaves_the_old_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    write_atomic(file, "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DiskFullError, match="record.json: the disk is full"):
        write_atomic(file, "new")
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


def test_command_names_the_full_disk(capsys: pytest.CaptureFixture[str]) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "models/mine")
    with mock.patch("cram_composer.commands.schema.run", side_effect=error):
        assert main(["schema", "run"]) == 2
    assert capsys.readouterr().err == f"error: {MESSAGE.format(path='models/mine')}\n"
