"""Seeds of the parts of a run: each changes its part only."""

from __future__ import annotations

import pytest

from tests.tiny_runs import TinyRuns, losses

RECIPES = "recipes=[crammed-bert,rope]"  # without dropout


def test_a_run_of_another_seed_with_the_same_seeds_of_parts_is_the_same(tiny_run: TinyRuns) -> None:
    first = tiny_run("first", RECIPES, "seed=1")
    other = tiny_run("other", RECIPES, "seed=2", "seeds={weights: 1, order: 1, masks: 1}")
    assert losses(other) == losses(first)


@pytest.mark.parametrize("part", ["weights", "order", "masks"])
def test_a_seed_changes_its_part(part: str, tiny_run: TinyRuns) -> None:
    first = tiny_run(f"before-{part}", RECIPES, "seed=1")
    other = tiny_run(f"after-{part}", RECIPES, "seed=1", f"seeds.{part}=2")
    assert losses(other) != losses(first)
