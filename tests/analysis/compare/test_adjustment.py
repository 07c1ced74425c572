"""Losses adjusted for tokens, on runs whose losses are known functions of their tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cram_composer.analysis.compare.adjustment import adjust_for_tokens
from cram_composer.analysis.compare.compare import compare
from cram_composer.analysis.compare.groups import Group, make_group
from cram_composer.analysis.runs.run import load_run

SLOPE = -0.3
Make = Callable[..., list[Path]]


def group(
    make_seeds: Make, name: str, offset: float, tokens: list[float], noise: float = 0.0, seeds: int = 0, **options: Any
) -> Group:
    """Make runs of these tokens with losses `offset` above the common law, and normal noise of their own and seed."""
    random, by_seed = np.random.default_rng(len(name) + seeds), np.random.default_rng(seeds)
    paths = []
    for seed, count in enumerate(tokens, start=1):
        loss = 4.0 + offset + SLOPE * math.log(count / 1e6) + noise * (random.normal() + 3.0 * by_seed.normal())
        paths += make_seeds(name, [loss], first_seed=seed, tokens=count, settings={"optimizer.lr": offset}, **options)
    return make_group(name, [load_run(path) for path in paths])


def test_a_disturbed_machine_is_taken_out_exactly_without_noise(make_seeds: Make) -> None:
    base = group(make_seeds, "base", 0.0, [1.0e6, 1.1e6, 1.2e6])
    disturbed = group(make_seeds, "disturbed", -0.02, [0.6e6, 0.9e6, 0.7e6])
    found = adjust_for_tokens([base, disturbed], base)
    assert found is not None
    assert found.slope == pytest.approx(SLOPE)
    assert found.differences["disturbed"].mean == pytest.approx(-0.02)


def test_the_verdict_stays_that_of_the_clock_and_the_row_is_beside_it(make_seeds: Make) -> None:
    base = group(make_seeds, "base", 0.0, [1.0e6, 1.1e6, 1.2e6])
    disturbed = group(make_seeds, "disturbed", -0.02, [0.5e6, 0.6e6, 0.55e6])
    found = compare([base, disturbed], base)[0]
    assert found.verdict.word == "worse"
    row = found.rows[1]
    assert "adjusted to equal tokens by -0.300 nats per e-fold" in row.measure
    assert row.difference is not None and row.difference.mean == pytest.approx(-0.02)


def test_intervals_hold_the_true_difference_in_95_of_100_sweeps(make_seeds: Make) -> None:
    held, random = 0, np.random.default_rng(0)
    names = ("base", "other", "a third")
    loaded = {name: group(make_seeds, name, 0.01 * n, [1e6] * 3) for n, name in enumerate(names)}
    for _ in range(300):
        by_seed = random.normal(size=3)
        for number, one in enumerate(loaded.values()):
            for seed, run in enumerate(one.runs):
                tokens = 1e6 * math.exp(0.1 * random.normal())
                run.record["tokens"] = tokens
                noise = 0.05 * by_seed[seed] + 0.01 * random.normal()
                run.record["metrics"]["validation_loss"] = 4.0 + 0.01 * number + SLOPE * math.log(tokens / 1e6) + noise
        found = adjust_for_tokens(list(loaded.values()), loaded["base"])
        assert found is not None
        interval = found.differences["other"]
        assert interval.low is not None and interval.high is not None
        held += interval.low <= 0.01 <= interval.high
    assert 0.91 * 300 <= held <= 0.99 * 300


@pytest.mark.parametrize("tokens", [[1e6, 1e6, 1e6], [1e6]], ids=["equal", "one run"])
def test_no_slope_without_tokens_that_differ(make_seeds: Make, tokens: list[float]) -> None:
    groups = [group(make_seeds, name, offset, tokens) for name, offset in (("base", 0.0), ("other", 0.1))]
    assert adjust_for_tokens(groups, groups[0]) is None
    assert all("adjusted" not in row.measure for row in compare(groups, groups[0])[0].rows)
