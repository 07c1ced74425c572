"""Schedules are pure functions of progress."""

from __future__ import annotations

import itertools
import math

import pytest

from cram_composer.budget.schedules import SCHEDULES, build_schedule, ramp
from cram_composer.config.optimizer_schema import ScheduleConfig
from cram_composer.errors import ConfigError


def values(name: str, **settings: float) -> list[float]:
    schedule = build_schedule(ScheduleConfig(name=name, **settings))
    return [schedule(p / 1000) for p in range(1001)]


def test_the_triangle_is_the_papers():
    schedule = build_schedule(ScheduleConfig())
    assert [schedule(p) for p in (0, 0.375, 0.75, 0.875, 1)] == pytest.approx([0.25, 0.625, 1, 0.5, 0])


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_stays_in_range_peaks_at_one_and_does_not_jump(name: str):
    curve = values(name)
    assert all(0.0 <= v <= 1.0 for v in curve)
    assert max(curve) == pytest.approx(1.0, abs=1e-3)
    assert max(abs(a - b) for a, b in itertools.pairwise(curve)) < 0.06


@pytest.mark.parametrize("name", ["triangle", "one-cycle", "linear", "cosine", "wsd"])
def test_the_rate_ends_at_its_final_value(name: str):
    assert values(name)[-1] == pytest.approx(0.0, abs=1e-12)
    assert values(name, final=0.1)[-1] == pytest.approx(0.1)


def test_inverse_sqrt_and_its_decay():
    plain = values("inverse-sqrt", warmup=0.1)
    assert plain[100] == pytest.approx(1.0) and plain[400] == pytest.approx(math.sqrt(0.1 / 0.4))
    decayed = values("inverse-sqrt", warmup=0.1, decay=0.2)
    assert decayed[800] == pytest.approx(plain[800]) and decayed[1000] == pytest.approx(0.0)


def test_wsd_is_flat_between_warmup_and_decay():
    curve = values("wsd", warmup=0.1, decay=0.3)
    assert set(curve[100:701]) == {1.0} and curve[850] == pytest.approx(0.5)


def test_progress_outside_the_budget_is_clamped():
    schedule = build_schedule(ScheduleConfig(name="cosine"))
    assert schedule(1.7) == schedule(1.0) and schedule(-1) == schedule(0)


def test_a_key_that_the_schedule_does_not_read_is_refused():
    with pytest.raises(ConfigError, match=r"schedule\.peak_at: the schedule 'cosine' has no 'peak_at'"):
        build_schedule(ScheduleConfig(name="cosine", peak_at=0.5))
    with pytest.raises(ConfigError, match="longer than the budget"):
        build_schedule(ScheduleConfig(name="wsd", warmup=0.6, decay=0.6))


def test_the_schema_offers_exactly_the_schedules_there_are():
    choices = ScheduleConfig.__dataclass_fields__["name"].metadata["choices"]
    assert set(choices) == set(SCHEDULES)


def test_ramp():
    assert [ramp(p, 1, 9, 0.5) for p in (0, 0.25, 0.5, 1)] == [1, 5, 9, 9]
    assert ramp(0.0, 1, 9, 0.0) == 9
