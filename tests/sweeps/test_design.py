"""Two-level designs: orthogonal, small, and mixed with interactions only as far as they say."""

from __future__ import annotations

import numpy as np
import pytest

from cram_composer.errors import ConfigError
from cram_composer.sweeps.design import aliases, two_level_design

PLACKETT_BURMAN = {2: 4, 3: 4, 4: 8, 7: 8, 8: 12, 11: 12, 12: 16, 15: 16, 16: 20, 19: 20, 20: 24, 23: 24}
FRACTIONAL = {2: 4, 3: 8, 4: 8, 5: 16, 8: 16, 9: 32, 16: 32}


@pytest.mark.parametrize(
    ("kind", "factors", "runs"),
    [
        *(("plackett-burman", factors, runs) for factors, runs in PLACKETT_BURMAN.items()),
        *(("fractional", factors, runs) for factors, runs in FRACTIONAL.items()),
    ],
)
def test_columns_are_balanced_and_orthogonal_and_the_first_run_has_everything_off(kind: str, factors: int, runs: int):
    design = two_level_design(kind, factors).astype(int)
    assert design.shape == (runs, factors)
    assert (np.abs(design) == 1).all() and (design[0] == -1).all()
    assert (design.sum(axis=0) == 0).all()
    assert np.array_equal(design.T @ design, runs * np.eye(factors, dtype=int))
    assert len(np.unique(design, axis=0)) == runs or factors < 3


@pytest.mark.parametrize("factors", FRACTIONAL)
def test_a_fractional_design_mixes_no_effect_with_an_interaction(factors: int):
    names = [str(number) for number in range(factors)]
    assert not any(aliases(two_level_design("fractional", factors), names).values())


def test_what_the_smallest_designs_mix():
    design = two_level_design("plackett-burman", 3)
    ((name, share),) = aliases(design, ["a", "b", "c"])["a"]
    assert name == "b x c" and abs(share) == 1.0
    partial = aliases(two_level_design("plackett-burman", 11), list("abcdefghijk"))
    assert {round(abs(share), 6) for found in partial.values() for _, share in found} == {round(1 / 3, 6)}
    assert all(len(found) == 45 for found in partial.values())  # every pair of the ten others


@pytest.mark.parametrize(
    ("kind", "factors", "message"),
    [("plackett-burman", 1, "2 to 23"), ("plackett-burman", 24, "2 to 23"), ("fractional", 17, "2 to 16")],
)
def test_designs_that_do_not_exist(kind: str, factors: int, message: str):
    with pytest.raises(ConfigError, match=message):
        two_level_design(kind, factors)
