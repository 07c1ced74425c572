"""Choice of the newest intact checkpoint."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path

import pytest

from cram_composer.runs.checkpoints import newest_checkpoint
from cram_composer.storage.files import write_json


def save(folder: Path, step: int) -> Path:
    path = folder / f"step-{step:08d}.pt"
    path.write_bytes(bytes(range(256)) * step)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(path.with_suffix(".json"), {"step": step, "bytes": path.stat().st_size, "sha256": digest})
    return path


def test_the_newest_intact_checkpoint_is_used(tmp_path: Path):
    assert newest_checkpoint(tmp_path) is None
    save(tmp_path, 5)
    newest = save(tmp_path, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = newest_checkpoint(tmp_path)
    assert found is not None and (found.path, found.step) == (newest, 12)


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "interrupted", "unreadable"])
def test_a_damaged_checkpoint_is_skipped_with_one_warning(tmp_path: Path, damage: str):
    good, bad = save(tmp_path, 5), save(tmp_path, 12)
    if damage == "truncated":
        bad.write_bytes(bad.read_bytes()[:-1])
    elif damage == "corrupt":
        data = bytearray(bad.read_bytes())
        data[100] ^= 1
        bad.write_bytes(data)
    elif damage == "interrupted":
        bad.with_suffix(".json").unlink()
    else:
        bad.with_suffix(".json").write_text("{")
    with pytest.warns(UserWarning, match=damage) as caught:
        found = newest_checkpoint(tmp_path)
    assert found is not None and found.path == good
    assert len(caught) == 1 and str(bad) in str(caught[0].message)
