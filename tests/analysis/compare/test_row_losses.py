"""Differences with the held-out rows as the sample, against the formula and by simulation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cram_composer.analysis.compare.compare import compare
from cram_composer.analysis.compare.groups import Group, make_group
from cram_composer.analysis.compare.row_losses import compare_rows
from cram_composer.analysis.runs.run import load_run
from cram_composer.runs.folder import ROW_LOSSES
from tests.analysis.conftest import MakeSeeds

Rows = np.ndarray
PREDICTED = np.array([3.0, 5.0, 4.0])


def group(paths: list[Path], losses: list[Rows | None], predicted: Rows = PREDICTED) -> Group:
    """Return the group of run folders, with these summed losses of rows [rows] each."""
    for path, of_rows in zip(paths, losses, strict=True):
        (path / ROW_LOSSES).unlink(missing_ok=True)
        if of_rows is not None:
            np.save(path / ROW_LOSSES, np.stack([of_rows, predicted], axis=1).astype(np.float32))
    return make_group(paths[0].name, [load_run(path) for path in paths])


def test_the_difference_is_that_of_the_mean_runs(make_seeds: MakeSeeds) -> None:
    """Differences of rows -1, -2 and -1.5: -4.5 nats over 12 tokens."""
    ours = group(make_seeds("rows-a", [3.0, 3.0]), [np.array([5.0, 9.0, 8.0]), np.array([7.0, 11.0, 9.0])])
    theirs = group(make_seeds("rows-b", [4.0]), [np.array([7.0, 12.0, 10.0])])
    found = compare_rows(ours, theirs)
    assert found is not None and found.difference.runs == 3
    assert (found.a, found.b) == pytest.approx((24.5 / 12, 29 / 12))
    assert found.difference.mean == pytest.approx(-4.5 / 12)
    error = np.std([-1 + 3 * 0.375, -2 + 5 * 0.375, -1.5 + 4 * 0.375], ddof=1) * np.sqrt(3) / 12
    high = found.difference.high
    assert high is not None and high - found.difference.mean == pytest.approx(4.3027 * error, rel=1e-4)


def test_intervals_contain_the_difference_of_all_text(make_seeds: MakeSeeds) -> None:
    """Rows differ in difficulty and length; 95 % intervals of 200 samples contain the true -0.05 nats."""
    random = np.random.default_rng(1)
    a, b = make_seeds("all-a", [3.0]), make_seeds("all-b", [3.0])
    inside, widths = 0, []
    for _ in range(200):
        predicted = random.integers(15, 25, 100).astype(float)
        hard = random.normal(4.0, 0.8, 100)
        ours = predicted * (hard - 0.05 + random.normal(0.0, 0.1, 100))
        compared = compare_rows(group(a, [ours], predicted), group(b, [predicted * hard], predicted))
        assert compared is not None
        found = compared.difference
        assert found.low is not None and found.high is not None
        inside += found.low <= -0.05 <= found.high
        widths.append(found.high - found.low)
    assert 183 <= inside <= 197
    assert np.mean(widths) < 0.05  # unpaired, the difficulty of rows alone would make it 0.4


def test_other_numbers_of_rows_or_predicted_tokens_are_not_paired(make_seeds: MakeSeeds) -> None:
    a, b = make_seeds("other-a", [3.0]), make_seeds("other-b", [3.0])
    ours = group(a, [PREDICTED * 3])
    assert compare_rows(ours, group(b, [PREDICTED * 2])) is not None
    assert compare_rows(ours, group(b, [PREDICTED * 2], np.array([3.0, 4.0, 4.0]))) is None
    assert compare_rows(ours, group(b, [np.ones(2)], np.array([3.0, 5.0]))) is None
    assert compare_rows(ours, group(b, [None])) is None
    (b[0] / ROW_LOSSES).write_bytes(b"damaged")
    assert compare_rows(ours, make_group("b", [load_run(b[0])])) is None


def test_only_shared_seeds_count_and_each_once(make_seeds: MakeSeeds) -> None:
    """Seeds 1 and 2 are shared; seed 3 would change the mean by a nat."""
    ours = group(make_seeds("seeds-a", [3.0, 3.0, 3.0]), [PREDICTED * 3.0, PREDICTED * 4.0, PREDICTED * 9.0])
    again = group(make_seeds("seeds-b", [4.0, 4.0]), [PREDICTED * 4.0, PREDICTED * 5.0])
    found = compare_rows(ours, again)
    assert found is not None and (found.a, found.b) == pytest.approx((3.5, 4.5))
    twice = make_group("twice", [*again.runs, again.runs[0]])
    repeated = compare_rows(ours, twice)
    assert repeated is not None and repeated.b == pytest.approx(4.5)


def test_a_comparison_shows_the_noise_of_the_rows(make_seeds: MakeSeeds) -> None:
    ours = group(make_seeds("shown-a", [3.0], settings={"optimizer.name": "muon"}), [PREDICTED * 3.0])
    theirs = group(make_seeds("shown-b", [3.5]), [PREDICTED * 3.5])
    (pair,) = compare([ours, theirs], theirs)
    (row,) = [row for row in pair.rows if row.measure.endswith("3 rows as the sample")]
    assert row.difference is not None and row.difference.mean == pytest.approx(-0.5)
    assert pair.verdict.word != "better"  # one seed each: held-out rows say nothing about seeds
