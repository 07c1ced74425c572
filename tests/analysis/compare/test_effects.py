"""Effects of a design: exact without noise, and as often wrong with noise as they say."""

from __future__ import annotations

import numpy as np
import pytest

from cram_composer.analysis.compare.effects import estimate_effects
from cram_composer.sweeps.design import two_level_design

NAMES = [f"f{number}" for number in range(15)]
DESIGN = two_level_design("plackett-burman", 15)


def values(true: dict[str, float], seeds: int, noise: float, random: np.random.Generator) -> np.ndarray:
    sizes = np.array([true.get(name, 0.0) for name in NAMES])
    of_seeds = random.normal(0.0, 0.5, seeds)  # common to all runs, such as an easy order of rows
    return 3.0 + (DESIGN @ sizes / 2)[:, None] + of_seeds + random.normal(0.0, noise, (16, seeds))


def test_effects_are_exact_without_noise_and_sorted_by_size():
    found = estimate_effects(DESIGN, NAMES, values({"f3": -0.2, "f7": 0.1}, 2, 0.0, np.random.default_rng(0)))
    assert [effect.name for effect in found.effects[:2]] == ["f3", "f7"]
    assert [effect.value for effect in found.effects[:3]] == pytest.approx([-0.2, 0.1, 0.0])


def test_the_error_is_that_of_means_over_half_of_the_runs_and_ignores_what_seeds_share():
    random = np.random.default_rng(1)
    errors = [estimate_effects(DESIGN, NAMES, values({}, 3, 0.03, random)).error for _ in range(200)]
    assert np.mean(errors) == pytest.approx(2 * 0.03 / np.sqrt(16 * 3), rel=0.03)


@pytest.mark.parametrize(("seeds", "most"), [(2, 0.06), (3, 0.06), (1, 0.06)])
def test_intervals_contain_the_truth_as_often_as_they_say(seeds: int, most: float):
    random = np.random.default_rng(2)
    outside = family = 0
    for _ in range(300):
        found = estimate_effects(DESIGN, NAMES, values({"f0": -0.1}, seeds, 0.03, random))
        truth = {"f0": -0.1}
        outside += sum(not one.low <= truth.get(one.name, 0.0) <= one.high for one in found.effects)
        family += any(one.is_clear for one in found.effects if one.name != "f0")
    assert outside / (300 * 15) < most and family / 300 < 0.09
    if seeds > 1:
        assert outside / (300 * 15) > 0.04  # not wider than it must be


def test_a_large_effect_is_found_with_one_seed():
    found = estimate_effects(DESIGN, NAMES, values({"f5": -0.2}, 1, 0.03, np.random.default_rng(3)))
    assert found.method == "Lenth" and found.degrees == 5.0
    assert found.effects[0].name == "f5" and found.effects[0].is_clear and found.effects[0].value < 0.0
    assert sum(effect.is_likely for effect in found.effects) <= 2
