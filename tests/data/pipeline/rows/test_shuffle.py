from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cram_composer.data.pipeline.rows.shuffle import (
    RowFile,
    buckets_needed,
    distribute_at_random,
    distribute_by_key,
    group_into_blocks,
    range_limits,
    read_buckets,
    sample_keys,
)

LENGTH = 4
ROW_BYTES = LENGTH * 2
DTYPE = np.dtype(np.uint16)


def rows_file(folder: Path, numbers: NDArray) -> RowFile:
    """Write rows that repeat their number four times."""
    path = folder / "rows"
    np.repeat(numbers.astype(DTYPE), LENGTH).tofile(path)
    return RowFile(path, LENGTH, DTYPE)


def shuffle(folder: Path, rows: int, memory_rows: int, seed: int = 0) -> NDArray:
    """Return the numbers of the rows 0..rows-1 in shuffled order."""
    dealt = folder / f"dealt{seed}"
    dealt.mkdir(exist_ok=True)
    buckets = buckets_needed(rows, ROW_BYTES, memory_rows * ROW_BYTES, 1)
    for left_over in dealt.iterdir():
        left_over.unlink()
    distribute_at_random(rows_file(folder, np.arange(rows)), dealt, "0", buckets, [seed, 0])
    shuffled_rows = np.concatenate(list(read_buckets(dealt, ["0"], range(buckets), LENGTH, DTYPE, [seed, 1])))
    assert (shuffled_rows == shuffled_rows[:, :1]).all(), "a row was torn"
    return shuffled_rows[:, 0]


def by_key(rows: NDArray) -> NDArray:
    return (rows[:, 0] // 7).astype(np.float64)


def test_rows_of_many_partitions_come_in_the_order_of_their_keys(tmp_path):
    random = np.random.default_rng(0)
    samples, files = [], []
    for partition in range(3):
        (tmp_path / str(partition)).mkdir()
        files.append(rows_file(tmp_path / str(partition), random.integers(0, 5000, 4000)))
        samples.append(sample_keys(files[-1], by_key, [partition]))
    limits = range_limits(np.concatenate(samples), 10)
    for partition, file in enumerate(files):
        distribute_by_key(file, by_key, limits, tmp_path, str(partition), [partition])
    names = ["0", "1", "2"]
    sizes = [
        sum(len(rows) for rows in read_buckets(tmp_path, names, range(b, b + 1), LENGTH, DTYPE, [])) for b in range(10)
    ]
    rows = np.concatenate(list(read_buckets(tmp_path, names, range(10), LENGTH, DTYPE, [])))
    assert (np.diff(by_key(rows)) >= 0).all()
    everything = np.concatenate([np.fromfile(file.path, DTYPE)[::LENGTH] for file in files])
    assert sorted(rows[:, 0]) == sorted(everything)
    assert max(sizes) < 1.1 * min(sizes)


def test_equal_keys_are_spread_over_buckets(tmp_path):
    file = rows_file(tmp_path, np.full(3000, 5))
    limits = range_limits(sample_keys(file, by_key, [1]), 4)
    distribute_by_key(file, by_key, limits, tmp_path, "0", [1])
    sizes = [(tmp_path / f"{bucket:06d}.0").stat().st_size // ROW_BYTES for bucket in range(4)]
    assert sum(sizes) == 3000
    assert max(sizes) < 1.2 * min(sizes)


@pytest.mark.parametrize("memory_rows", [100_000, 3000, 100])
def test_every_row_comes_once_and_far_from_home(tmp_path, memory_rows):
    order = shuffle(tmp_path, 20_000, memory_rows)
    assert sorted(order) == list(range(20_000))
    # In a random order, the mean distance of two rows is a third of the length, for neighbours too.
    assert np.abs(order.astype(int) - np.arange(20_000)).mean() == pytest.approx(20_000 / 3, rel=0.05)
    assert np.abs(np.diff(order.astype(int))).mean() == pytest.approx(20_000 / 3, rel=0.05)


def test_order_depends_on_seed_alone(tmp_path):
    first = shuffle(tmp_path, 1000, 100).tolist()
    assert shuffle(tmp_path, 1000, 100).tolist() == first
    assert shuffle(tmp_path, 1000, 100, seed=1).tolist() != first


def test_every_place_is_as_likely(tmp_path):
    # The position of row 0 over many seeds and several buckets has the mean and spread of a uniform one.
    places = [shuffle(tmp_path, 200, 50, seed).tolist().index(0) for seed in range(300)]
    assert np.mean(places) == pytest.approx(99.5, abs=3.5 * 58 / 300**0.5)
    assert np.std(places) == pytest.approx(57.7, rel=0.15)


def test_no_bucket_outgrows_the_memory(tmp_path):
    shuffle(tmp_path, 20_000, 2000)
    sizes = [path.stat().st_size for path in (tmp_path / "dealt0").iterdir()]
    assert len(sizes) > 10
    assert max(sizes) <= 2000 * ROW_BYTES


def test_blocks_are_full_but_for_the_last():
    rows = np.arange(70).reshape(35, 2)
    sizes = [3, 20, 0, 1, 11]
    arrays = iter(np.split(rows, np.cumsum(sizes)[:-1]))
    found = list(group_into_blocks(arrays, 8))
    assert [len(block) for block in found] == [8, 8, 8, 8, 3]
    assert np.concatenate(found).tolist() == rows.tolist()
