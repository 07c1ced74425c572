"""Schedules are pure functions of progress."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from cram_composer.budget.schedules import SCHEDULES, build_schedule, ramp
from cram_composer.config.schema.introspect import sections, tag
from cram_composer.config.schema.schedule import ScheduleConfig

CONFIGS = {tag(section): section for section in sections(ScheduleConfig)}


def values(name: str, **settings: Any) -> list[float]:
    schedule = build_schedule(CONFIGS[name](**settings))
    return [schedule(p / 1000) for p in range(1001)]


def test_the_triangle_matches_the_paper():
    schedule = build_schedule(CONFIGS["triangle"]())
    assert [schedule(p) for p in (0, 0.375, 0.75, 0.875, 1)] == pytest.approx([0.25, 0.625, 1, 0.5, 0])


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_stays_in_range_peaks_at_one_and_does_not_jump(name: str):
    curve = values(name)
    assert all(0.0 <= v <= 1.0 for v in curve)
    assert max(curve) == pytest.approx(1.0, abs=1e-2)  # a peak may lie between two points
    jumps = [b - a for a, b in itertools.pairwise(curve) if abs(b - a) >= 0.06]
    restarts = 3 if name == "cosine-restarts" else 0
    assert jumps == pytest.approx([1.0] * restarts, abs=1e-3)


@pytest.mark.parametrize("name", sorted(SCHEDULES.keys() - {"constant", "inverse-sqrt"}))
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


def test_wsd_with_one_minus_square_root_decay():
    linear = values("wsd", decay=0.4)
    root = values("wsd", decay=0.4, decay_shape="1-sqrt", final=0.1)
    assert root[:601] == linear[:601]
    assert root[700] == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.25))) and root[1000] == pytest.approx(0.1)


def test_polynomial_with_power_one_is_linear():
    assert values("polynomial", warmup=0.2, final=0.1) == pytest.approx(values("linear", warmup=0.2, final=0.1))
    assert values("polynomial", warmup=0.2, power=2.0)[600] == pytest.approx(0.25)


def test_cosine_restarts_is_several_cosines():
    curve = values("cosine-restarts", warmup=0.2, cycles=4, final=0.1)
    once = values("cosine", warmup=0.0, final=0.1)
    for begin in (200, 400, 600, 800):
        assert curve[begin + 1 : begin + 200] == pytest.approx(once[5:1000:5])
    assert values("cosine-restarts", cycles=1) == pytest.approx(values("cosine"))


def test_multi_cycle_is_several_triangles():
    curve = values("multi-cycle", cycles=4, start=0.2)
    once = values("triangle", start=0.2, peak_at=0.5, final=0.2)
    for begin in (0, 250, 500):
        assert curve[begin : begin + 250] == pytest.approx(once[:1000:4])
    assert [curve[875], curve[1000]] == pytest.approx([1.0, 0.0])


def test_inverse_cosine_has_the_shape_of_the_cramming_code():
    """Compare with its lr_lambda at 1000 steps with 100 of cooldown, relative to the start of the cooldown."""

    def theirs(step: int) -> float:
        def rise(step: int) -> float:
            return 0.5 * (1.0 + math.cos(math.pi * (1 - step / 1000)))

        return rise(step) / rise(900) if step <= 900 else (1000 - step) / 100

    assert values("inverse-cosine", decay=0.1) == pytest.approx([theirs(step) for step in range(1001)])


def test_progress_outside_the_budget_is_clamped():
    schedule = build_schedule(CONFIGS["cosine"]())
    assert schedule(1.7) == schedule(1.0) and schedule(-1) == schedule(0)


def test_phases_longer_than_the_budget_are_rejected():
    with pytest.raises(ValueError, match="warmup and decay together are longer than the budget"):
        CONFIGS["wsd"](warmup=0.6, decay=0.6)


def test_the_schema_and_the_registry_have_the_same_schedules():
    assert set(CONFIGS) == set(SCHEDULES)


def test_ramp():
    assert [ramp(p, 1, 9, 0.5) for p in (0, 0.25, 0.5, 1)] == [1, 5, 9, 9]
    assert ramp(0.0, 1, 9, 0.0) == 9
