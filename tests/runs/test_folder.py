"""Records of runs: current and earlier formats, and device-hours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cram_composer.analysis.runs.run import load_run
from cram_composer.errors import CramError
from cram_composer.runs.folder import RECORD, RunFolder, device_hours, read_record

OLD_RECORD = {
    "format_version": 1,
    "run_name": "old",
    "status": "killed-early",
    "segments": [{"started_at_step": 0}],
    "config": {
        "model": {"norm_place": "pre", "ffn": "gelu_glu", "layers": 4},
        "train": {"nonfinite": "skip", "kill": {"at": 0.2}, "batch_size": 64},
    },
}
UPGRADED_RECORD = {
    "format_version": 2,
    "run_name": "old",
    "status": "stopped-early",
    "attempts": [{"started_at_step": 0}],
    "config": {
        "model": {"norm_position": "pre", "ffn": "geglu", "layers": 4},
        "train": {"on_nonfinite": "skip", "early_stop": {"at": 0.2}, "batch_size": 64},
    },
}


@pytest.mark.parametrize(
    "read",
    [
        read_record,
        lambda path: read_record(path / RECORD),
        lambda path: RunFolder(path).read_record(),
        lambda path: load_run(path).record,
    ],
)
def test_record_of_format_1_is_converted(tmp_path: Path, read) -> None:
    (tmp_path / RECORD).write_text(json.dumps(OLD_RECORD))
    assert read(tmp_path) == UPGRADED_RECORD


def test_unreadable_records_are_one_line(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).read_record() is None
    for content, message in (
        (None, r"not a run folder, because it has no record\.json"),
        ("{", "not valid JSON"),
        ("", r"damaged \(empty\)"),
        ('{"format_version": 3}', "must be 1 or 2, got 3; use the cram-composer that wrote it"),
        ("[]", r"damaged \(is foreign\)"),
        ("{}", "must be 1 or 2, got None; restore it"),
        ('{"format_version": 2, "config": {}}', r"damaged \(status is missing\)"),
        ('{"format_version": 2, "status": "running", "config": [1]}', r"damaged \(config has a wrong type\)"),
    ):
        if content is not None:
            (tmp_path / RECORD).write_text(content)
        with pytest.raises(CramError, match=message) as caught:
            read_record(tmp_path)
        assert "\n" not in str(caught.value)


def test_device_hours_sum_over_attempts_on_different_device_counts() -> None:
    attempts = [
        {"spent_before": 0.0, "world_size": 4},
        {"spent_before": 900.0},  # from a version that did not record devices
        {"spent_before": 1800.0, "world_size": 1},
    ]
    assert device_hours(attempts, 3600.0, 2) == pytest.approx((4 * 900 + 2 * 900 + 1 * 1800) / 3600)


def test_device_hours_of_one_attempt_are_seconds_times_devices() -> None:
    assert device_hours([], 7200.0, 8) == 16.0


def test_leftovers_of_kills_are_removed_at_the_next_start(tmp_path: Path) -> None:
    killed, running = 999_999_999, os.getppid()
    leftovers = [
        f".record.json.{killed}.140.tmp",
        f".record.json.{os.getpid()}.140.tmp",
        f".export.{killed}.tmp/model.safetensors",
        f".export.{killed}.old/config.json",
        f"figures/.loss.png.{killed}.140.tmp",
        "branch-points/.step-00000004.pt.tmp",
        "checkpoints/.saving-step-00000005.pt",
        "checkpoints/.fetched-step-00000005.pt",
        "checkpoints/.sending-step-00000005.pt",
    ]
    kept = [
        f".export.{running}.tmp/model.safetensors",  # by `cram export`
        "export/config.json",
        "record.json",
        "checkpoints/step-00000004.pt",
    ]
    for name in (*leftovers, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder = RunFolder(tmp_path)
    folder.lock()
    folder.unlock()
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found - {".lock", ".lock-holder"} == set(kept)


def test_export_that_was_being_replaced_is_restored(tmp_path: Path) -> None:
    (tmp_path / ".export.999999999.old").mkdir()
    (tmp_path / ".export.999999999.old" / "config.json").touch()
    folder = RunFolder(tmp_path)
    folder.lock()
    folder.unlock()
    assert (tmp_path / "export" / "config.json").is_file()
