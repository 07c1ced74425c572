from __future__ import annotations

import math

import numpy as np
import pytest

from cram_composer.data.packing import Packer, unigram_nats


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_rows_are_the_stream_chopped(tmp_path, dtype):
    random = np.random.default_rng(0)
    packer = Packer(tmp_path / "rows", 8, 100, np.dtype(dtype))
    stream: list[int] = []
    for length in (0, 3, 5, 40, 1, 7, 0, 13):
        ids = random.integers(0, 100, length).tolist()
        packer.add(ids)
        stream += ids
    packer.close()
    rows = np.fromfile(tmp_path / "rows", dtype).reshape(-1, 8)
    assert rows.ravel().tolist() == stream[: len(stream) // 8 * 8]
    assert packer.rows == len(rows) == len(stream) // 8
    assert packer.dropped_tokens == len(stream) % 8
    assert packer.counts.tolist() == np.bincount(rows.ravel(), minlength=100).tolist()


def test_unigram_nats_by_hand():
    # Ids 0 and 1 are special. Train: 3 x id 2, 0 x id 3; smoothed 4/5 and 1/5.
    nats = unigram_nats(np.array([50, 7, 3, 0]), np.array([9, 0, 1, 1]), [0, 1])
    assert nats == pytest.approx(-(math.log(4 / 5) + math.log(1 / 5)) / 2)


def test_rows_come_in_whole_units_unless_there_are_fewer_in_all(tmp_path):
    for tokens, rows in ((100, 24), (95, 16), (30, 7)):
        packer = Packer(tmp_path / "rows", 4, 50, np.dtype(np.uint16), unit_rows=8)
        packer.add(list(range(20)))
        packer.add([1] * (tokens - 20))
        packer.close()
        assert packer.rows == rows
        assert packer.dropped_tokens == tokens - 4 * rows
        assert packer.counts.sum() == 4 * rows
