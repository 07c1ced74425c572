"""Durations."""

from __future__ import annotations

import pytest

from cram_composer.config.units import format_duration, parse_duration
from cram_composer.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("90m", 5400), ("600s", 600), ("1d", 86400), ("1h30m", 5400), ("0.5h", 1800), ("1d2h3m4s", 93784)],
)
def test_durations_are_read(text: str, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "h", "1h1h", "30m1h", "-5m", "0s", "1 h", "1w"])
def test_what_is_not_a_duration_is_refused(text: str):
    with pytest.raises(ConfigError):
        parse_duration(text)


def test_durations_are_written_for_people():
    assert [format_duration(s) for s in (9.6, 75, 3661)] == ["10 s", "1:15", "1:01:01"]
