from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cram_composer.data.shuffle import blocks, shuffled

LENGTH = 4
ROW_BYTES = LENGTH * 2
DTYPE = np.dtype(np.uint16)


def shuffle(folder: Path, rows: int, memory_rows: int, seed: int = 0) -> NDArray:
    """Numbers of the rows 0..rows-1 in shuffled order; a row is its own number four times."""
    path = folder / "rows"
    np.repeat(np.arange(rows, dtype=DTYPE), LENGTH).tofile(path)
    shuffled_rows = np.concatenate(list(shuffled(path, rows, LENGTH, DTYPE, memory_rows * ROW_BYTES, [seed, 0])))
    assert list(folder.iterdir()) == [], "temporary files are left"
    assert (shuffled_rows == shuffled_rows[:, :1]).all(), "a row was torn"
    return shuffled_rows[:, 0]


@pytest.mark.parametrize("memory_rows", [100_000, 3000, 100])
def test_every_row_comes_once_and_far_from_home(tmp_path, memory_rows):
    order = shuffle(tmp_path, 20_000, memory_rows)
    assert sorted(order) == list(range(20_000))
    # For a random order the mean distance is a third of the length, and neighbours are no nearer than others.
    assert np.abs(order.astype(int) - np.arange(20_000)).mean() == pytest.approx(20_000 / 3, rel=0.05)
    assert np.abs(np.diff(order.astype(int))).mean() == pytest.approx(20_000 / 3, rel=0.05)


def test_order_depends_on_seed_alone(tmp_path):
    first = shuffle(tmp_path, 1000, 100).tolist()
    assert shuffle(tmp_path, 1000, 100).tolist() == first
    assert shuffle(tmp_path, 1000, 100, seed=1).tolist() != first


def test_every_place_is_as_likely(tmp_path):
    # Row 0 over many seeds, with several buckets: mean and spread of a uniform place.
    places = [shuffle(tmp_path, 200, 50, seed).tolist().index(0) for seed in range(300)]
    assert np.mean(places) == pytest.approx(99.5, abs=3.5 * 58 / 300**0.5)
    assert np.std(places) == pytest.approx(57.7, rel=0.15)


def test_no_bucket_outgrows_the_memory(tmp_path, monkeypatch):
    held: list[int] = []
    read = np.fromfile

    def counting(file, dtype, *arguments):
        array = read(file, dtype, *arguments)
        held.append(array.nbytes)
        return array

    monkeypatch.setattr(np, "fromfile", counting)
    shuffle(tmp_path, 20_000, 2000)
    assert len(held) > 10
    assert max(held) <= 2000 * ROW_BYTES


def test_blocks_are_full_but_for_the_last():
    rows = np.arange(70).reshape(35, 2)
    sizes = [3, 20, 0, 1, 11]
    arrays = iter(np.split(rows, np.cumsum(sizes)[:-1]))
    found = list(blocks(arrays, 8))
    assert [len(block) for block in found] == [8, 8, 8, 8, 3]
    assert np.concatenate(found).tolist() == rows.tolist()
