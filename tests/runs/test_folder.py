"""What the record adds up."""

from __future__ import annotations

import pytest

from cram_composer.runs.folder import device_hours


def test_device_hours_add_up_over_starts_on_different_numbers_of_devices() -> None:
    attempts = [
        {"spent_before": 0.0, "world_size": 4},
        {"spent_before": 900.0},  # of a version that did not note its devices
        {"spent_before": 1800.0, "world_size": 1},
    ]
    assert device_hours(attempts, 3600.0, 2) == pytest.approx((4 * 900 + 2 * 900 + 1 * 1800) / 3600)


def test_device_hours_of_one_start_are_its_seconds_times_its_devices() -> None:
    assert device_hours([], 7200.0, 8) == 16.0
