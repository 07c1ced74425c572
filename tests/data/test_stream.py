"""The stream of rows: order, place, completeness."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cram_composer.data.masking import Masker, evaluation_masker
from cram_composer.data.stream import Position, RowStream, TrainLoader, evaluation_batches, open_split, read_rows
from cram_composer.errors import CramError


def stream(root: Path, workers: int = 0, timeout: float = 60.0) -> RowStream:
    return RowStream(open_split(root, None, "train", shuffle=True, seed=7), workers, timeout, world_size=1)


def loader(root: Path) -> TrainLoader:
    masker = Masker(200, (0, 1, 2, 3, 4), 4)
    return TrainLoader(stream(root), masker, rows=32, microbatch=16, seq_length=32, seed=5, rank=0)


def stored_rows(root: Path) -> np.ndarray:
    return read_rows(open_split(root, None, "train", shuffle=False, seed=0), 1 << 30)


def as_set(rows: np.ndarray) -> list[bytes]:
    return sorted(row.tobytes() for row in rows)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_epoch_has_every_row_once_and_the_next_has_them_in_another_order(tiny_data: Path, workers: int):
    everything = stored_rows(tiny_data)
    reader = stream(tiny_data, workers)
    first, second = reader.take(len(everything)), reader.take(len(everything))
    assert as_set(first) == as_set(second) == as_set(everything)
    assert not np.array_equal(first, second)
    assert np.array_equal(first, stream(tiny_data).take(len(everything)))  # the workers do not change the order


def test_the_order_does_not_depend_on_how_rows_are_taken(tiny_data: Path):
    whole, pieces = stream(tiny_data), stream(tiny_data)
    expected = whole.take(700)
    taken = [pieces.take(count) for count in (1, 15, 16, 17, 100, 3, 548)]
    assert np.array_equal(np.concatenate(taken), expected)


@pytest.mark.parametrize("before", [1, 16, 37, 1500])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_continues_exactly_where_another_stopped(tiny_data: Path, before: int, workers: int):
    reader = stream(tiny_data, workers)
    reader.take(before)
    again = stream(tiny_data, workers)
    again.seek(Position(**vars(reader.position)))
    assert vars(again.position) == vars(reader.position)
    assert np.array_equal(again.take(2000), reader.take(2000))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_missing_shard_is_an_error_and_never_a_short_epoch(tiny_data: Path, tmp_path: Path, workers: int):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_data, broken)
    reader = stream(broken, workers, timeout=20.0)
    for shard in (broken / "train").glob("*.mds"):
        shard.unlink()
    with pytest.raises(CramError, match=str(broken)):
        reader.take(5000)


def test_cutting_rows_loses_no_token_and_truncating_keeps_their_heads(tiny_data: Path):
    plain, cut, short = loader(tiny_data), loader(tiny_data), loader(tiny_data)
    cut.seq_length = short.seq_length = 8
    short.truncate = True
    full, pieces, heads = (next(iter(one))["input_ids"] for one in (plain, cut, short))
    assert full.shape == (32, 32) and pieces.shape == (128, 8) and heads.shape == (32, 8)
    rows = torch.from_numpy(stream(tiny_data).take(32).astype(np.int64))
    kept = [batch != 4 for batch in (full, pieces, heads)]
    assert (pieces == rows.reshape(128, 8))[kept[1]].float().mean() > 0.9  # all but the random replacements
    assert (heads == rows[:, :8])[kept[2]].float().mean() > 0.9


def test_batches_of_any_size_split_into_microbatches(tiny_data: Path):
    one = loader(tiny_data)
    batches = iter(one)
    for rows, seq_length, shape in ((32, 32, (16, 32)), (48, 16, (32, 16)), (16, 8, (64, 8))):
        one.rows, one.seq_length = rows, seq_length
        batch = next(batches)
        parts = one.split(batch, 16)
        assert len(parts) == rows // 16
        assert all(part["input_ids"].shape == shape for part in parts)
        assert torch.equal(torch.cat([part["labels"] for part in parts]), batch["labels"])


def test_a_loader_resumes_with_the_same_rows_and_masks(tiny_data: Path):
    one, other = loader(tiny_data), loader(tiny_data)
    batches = iter(one)
    for _ in range(5):
        next(batches)
    other.load_state_dict(one.state_dict())
    expected, found = next(batches), next(iter(other))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_evaluation_batches_share_rows_out_and_have_fixed_masks(tiny_data: Path):
    rows = read_rows(open_split(tiny_data, None, "validation", shuffle=False, seed=0), 70)
    masker = evaluation_masker(200, (0, 1, 2, 3, 4), 4)
    alone = evaluation_batches(rows, masker, 16)
    shared = [evaluation_batches(rows, masker, 16, rank, 2) for rank in (0, 1)]
    assert len(alone) == 4 and [len(part) for part in shared] == [2, 2]
    for index, batch in enumerate(alone):
        assert torch.equal(batch["labels"], shared[index % 2][index // 2]["labels"])
