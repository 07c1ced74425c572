"""Number, name and path formatting."""

from __future__ import annotations

from pathlib import Path

import pytest

from cram_composer.config.formatting import (
    NOT_MEASURED,
    count,
    decimal,
    duration,
    elide,
    percent,
    short_count,
    short_path,
    signed,
)


@pytest.mark.parametrize("function", [count, decimal, duration, percent, short_count])
@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), "12", True])
def test_missing_values_print_as_not_measured(function, missing) -> None:
    assert function(missing) == NOT_MEASURED


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (59.96, "1 min"),
        (599.84, "9 min 59.8 s"),
        (600, "10 min"),
        (3599.96, "1 h"),
        (86_400, "24 h"),
        (86_370.4, "23 h 59 min 30 s"),
        (3_607, "1 h 7 s"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (9_999, "9,999"), (10_730.2, "10.73 k"), (119_500_000, "119.5 M"), (2_048_000_000, "2.048 B")],
)
def test_large_numbers_keep_four_digits(value: float, said: str) -> None:
    assert short_count(value) == said


def test_eliding_keeps_both_ends_and_the_length() -> None:
    assert elide("abcdefghij", 10) == "abcdefghij"
    assert elide("abcdefghij", 6) == "ab…hij"


def test_zero_has_no_sign() -> None:
    assert (decimal(-0.0004), decimal(-0.0006), decimal(-1000.0)) == ("0.000", "-0.001", "-1,000.000")
    assert (percent(-0.0004), percent(-0.0006)) == ("0.0 %", "-0.1 %")
    assert [signed(value, 2) for value in (-0.004, 0.004, -0.006, 0.006)] == ["0.00", "0.00", "-0.01", "+0.01"]


def test_paths_below_the_current_and_the_home_folder_are_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shown = {"here/runs/a": "runs/a", "home/cache/b": "~/cache/b", "other/c": f"{tmp_path}/other/c"}
    assert {path: short_path(tmp_path / path) for path in shown} == shown
    assert [short_path(text) for text in ("../a", "s3://bucket/a", "recipe muon")] == [
        "../a",
        "s3://bucket/a",
        "recipe muon",
    ]
