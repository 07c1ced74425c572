"""Checkpoints come from buckets that others write to: loading one never runs code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from cram_composer.errors import CramError
from cram_composer.train.checkpointing import load_state, tensors_only
from cram_composer.train.export import export_run
from tests.tiny_runs import TinyRuns, record


class _Command:
    """Runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def _replace(path: Path, marker: Path) -> None:
    """Put a command into a checkpoint, with a hash that fits, as somebody with access to a bucket can."""
    loaded = torch.load(path, weights_only=False)
    loaded["state"]["callbacks"]["Evil"] = _Command(f"touch {marker}")
    torch.save(loaded, path)
    data = path.read_bytes()
    described = json.loads(path.with_suffix(".json").read_text())
    described |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(described))


def test_checkpoint_with_code_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    runs = TinyRuns(tiny_data, tmp_path)
    run, marker = runs("victim", "budget={wall: null, steps: 4}"), tmp_path / "marker"
    checkpoint = max((run / "checkpoints").glob("*.pt"))
    assert load_state(checkpoint)["model"]
    _replace(checkpoint, marker)
    for load in (lambda: load_state(checkpoint), lambda: export_run(run, tmp_path / "export")):
        with pytest.raises(CramError, match=r"names the Python object posix\.system.*it was not loaded"):
            load()
    assert not marker.exists() and not (tmp_path / "export").exists()
    assert record(run)["status"] == "finished"


def test_composers_loading_is_restricted_too(tmp_path: Path) -> None:
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    torch.save(_Command(f"touch {marker}"), file)
    with pytest.raises(CramError, match="could run code"), tensors_only(file):
        torch.load(file, weights_only=False)
    assert not marker.exists()


def test_pickle_that_is_no_archive_is_one_line(tmp_path: Path) -> None:
    file, marker = tmp_path / "evil.pt", tmp_path / "marker"
    file.write_bytes(pickle.dumps({"state": _Command(f"touch {marker}")}))
    with pytest.raises(CramError, match=r"evil\.pt: not a checkpoint of torch\.save"):
        load_state(file)
    assert not marker.exists()
