"""Errors of Streaming while a data set opens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from cram_composer.data.loading import open_dataset
from cram_composer.errors import CramError

DATA = cast(Any, SimpleNamespace(root="shards"))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Do not sleep; return the seconds that were asked for."""
    seconds: list[float] = []
    monkeypatch.setattr(open_dataset.time, "sleep", seconds.append)
    return seconds


def opening(*outcomes: Any) -> Any:
    """Return a function that raises or returns the outcomes in turn, the last one for ever."""
    left = list(outcomes)

    def open_new() -> Any:
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return open_new


def test_the_processes_of_a_killed_run_are_given_time_to_end(slept: list[float]) -> None:
    reused = ValueError("Reused local directory: ['shards'] vs ['shards']. Provide a different one.")
    assert open_dataset._open_with_retry(DATA, opening(reused, reused, reused, "opened")) == "opened"
    assert 0 < sum(slept) < 5
    with pytest.raises(CramError, match="shards: another run uses this folder as its cache; set data.local"):
        open_dataset._open_with_retry(DATA, opening(reused))
    assert 5 < sum(slept) < 30


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("Minimum cache usage is 9 bytes\nmore", "^data.cache_limit: too small: Minimum cache usage is 9 bytes$"),
        ("bad index", "^shards: bad index$"),
    ],
)
def test_other_errors_are_one_line_at_once(slept: list[float], error: str, said: str) -> None:
    with pytest.raises(CramError, match=said):
        open_dataset._open_with_retry(DATA, opening(ValueError(error)))
    assert slept == []
