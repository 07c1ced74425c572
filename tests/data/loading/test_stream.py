"""The stream of rows: order, position and completeness for any number of ranks and reader processes."""

from __future__ import annotations

import itertools
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from streaming.base.shared import prefix

from cram_composer.config.schema.data import CurriculumPointConfig, DataConfig, StreamWeightConfig
from cram_composer.data.loading.mixture import Curriculum
from cram_composer.data.loading.open_dataset import open_held_out, open_train
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.data.loading.stream import RowStream, TrainLoader, evaluation_batches
from cram_composer.data.manifest import load_manifest
from cram_composer.data.masking import MaskedLMCollator, evaluation_collator
from cram_composer.errors import CramError
from tests.data.data_sets import LENGTH, close_shared_memory, number_of, write_data_set

ROWS = 512


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("stream") / "data", ROWS)


@pytest.fixture(scope="session")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set with streams of 240, 80 and 5 rows, the last in one short block."""
    streams = {"train-web": 240, "train-wiki": 80, "train-tiny": 5}
    return write_data_set(tmp_path_factory.mktemp("three") / "data", streams, ordering="fragment")


def stream(root: Path, rank: int = 0, ranks: int = 1, seed: int = 7, **settings) -> RowStream:
    data = PreparedDataset(root, load_manifest(root))
    config = DataConfig(local=str(root), **{"num_workers": 0, **settings})
    return open_train(data, config, seed=seed, rank=rank, world_size=ranks)


def loader(root: Path, rank: int = 0, ranks: int = 1, rows: int = 32, **others) -> TrainLoader:
    collator = MaskedLMCollator(200, (0, 1, 2, 3, 4), 4)
    sizes = {"rows": rows, "microbatch": rows // 2, "seq_length": LENGTH}
    return TrainLoader(stream(root, rank, ranks), collator, **sizes, seed=5, rank=rank, **others)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_epochs_have_every_row_once_in_different_orders(root: Path, workers: int):
    reader = stream(root, num_workers=workers)
    first, second = number_of(reader.take(ROWS)), number_of(reader.take(ROWS))
    assert sorted(first) == sorted(second) == list(range(ROWS))
    assert first != second and reader.epochs == 2.0
    again = stream(root)
    assert [first, second] == [number_of(again.take(ROWS)), number_of(again.take(ROWS))]  # independent of workers
    assert number_of(stream(root, seed=8).take(ROWS)) != first


def test_blocks_of_one_shard_are_spread(root: Path):
    blocks = [number // 8 for number in number_of(stream(root).take(ROWS))[::8]]
    assert sum(a // 4 == b // 4 for a, b in itertools.pairwise(blocks)) < 20  # of 63 neighbours


def test_stored_order_is_kept_in_every_epoch_and_is_the_default_of_ordered_data(root: Path, three: Path):
    reader = stream(root, order="stored")
    assert number_of(reader.take(ROWS)) == number_of(reader.take(ROWS)) == list(range(ROWS))
    numbers = number_of(stream(three).take(325))
    assert sorted(numbers) == list(range(325))
    web, wiki = ([n for n in numbers if low <= n < high] for low, high in ((0, 240), (240, 320)))
    assert web == sorted(web) and wiki == sorted(wiki)
    assert 30 < sum(n in wiki for n in numbers[:162]) < 50  # streams are interleaved evenly
    shuffled = number_of(stream(three, order="shuffled").take(325))
    assert sorted(shuffled) == sorted(numbers) and shuffled != numbers


@pytest.mark.parametrize("workers", [0, 2])
def test_order_does_not_depend_on_step_sizes(root: Path, workers: int):
    expected = stream(root).take(2000)
    pieces = stream(root, num_workers=workers, prefetch=5)
    sizes = [1, 15, 16, 17, 100, 3, 548, 512, 1, 1, 600, 186]
    assert np.array_equal(np.concatenate([pieces.take(size) for size in sizes]), expected)


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_divide_the_rows_of_a_single_rank(root: Path, ranks: int, workers: int):
    """Batch sizes change, from less than a block to many, and batches span the end of epochs."""
    if workers and ranks > 2:
        pytest.skip("too many processes for a test")
    rows = [1, 1, 3, 3, 3, 30, 30, 30, 7, 7, 64, 64, 1]
    alone = stream(root)
    together = [stream(root, rank, ranks, num_workers=workers, prefetch=3) for rank in range(ranks)]
    for count in rows:
        parts = [number_of(one.take(count)) for one in together]
        assert [number for part in parts for number in part] == number_of(alone.take(count * ranks))


@pytest.mark.parametrize("before", [1, 16, 37, 1500])
@pytest.mark.parametrize("workers", [0, 2])
def test_stream_resumes_on_another_number_of_ranks(root: Path, before: int, workers: int):
    reader = stream(root, num_workers=workers)
    reader.take(before)
    place = reader.state_dict()
    parts = []
    for rank in range(4):
        one = stream(root, rank, 4)
        one.load_state_dict(place)
        parts.append(one.take(150))
    assert np.array_equal(np.concatenate(parts), reader.take(600))


def test_state_of_other_data_is_refused(three: Path):
    curriculum = [CurriculumPointConfig(at=0.0, proportions={"web": 1.0, "wiki": 1.0})]
    with pytest.raises(CramError, match="2 data streams, this run has 1"):
        stream(three).load_state_dict(stream(three, curriculum=curriculum).state_dict())


def shares(numbers: list[int]) -> tuple[int, int, int]:
    return sum(n < 240 for n in numbers), sum(240 <= n < 320 for n in numbers), sum(n >= 320 for n in numbers)


def test_mixtures_have_the_weights_of_streaming(three: Path):
    def epoch(**weights: StreamWeightConfig) -> tuple[int, int, int]:
        reader = stream(three, mixture=weights, order="shuffled")
        return shares(number_of(reader.take(reader.rows_per_epoch)))

    assert epoch() == (240, 80, 5)
    assert epoch(wiki=StreamWeightConfig(repeat=2.5)) == (240, 200, 5)
    assert epoch(wiki=StreamWeightConfig(choose=3), tiny=StreamWeightConfig(repeat=3.0)) == (240, 24, 15)
    assert epoch(web=StreamWeightConfig(repeat=0.0)) == (0, 80, 5)
    half = StreamWeightConfig(proportion=1.0)
    web, wiki, tiny = epoch(web=half, wiki=half, tiny=StreamWeightConfig(proportion=0.0))
    assert tiny == 0 and abs(web - wiki) <= 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": {"books": StreamWeightConfig(repeat=2.0)}}, "no stream 'books'; it has web, wiki, tiny"),
        (
            {"curriculum": [CurriculumPointConfig(at=0.0, proportions={"books": 1.0})]},
            "data.curriculum: the data set has no stream",
        ),
        ({"mixture": {"web": StreamWeightConfig(proportion=1.0)}}, "no proportion for wiki, tiny"),
        (
            {"mixture": {name: StreamWeightConfig(proportion=0.0) for name in ("web", "wiki", "tiny")}},
            "all streams are 0",
        ),
    ],
)
def test_invalid_mixture_is_one_line(three: Path, settings, message: str):
    with pytest.raises(CramError, match=message) as error:
        stream(three, **settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_a_curriculum_gives_each_step_its_shares_and_every_stream_its_rows_in_order(
    three: Path, ranks: int, workers: int
):
    points = [
        CurriculumPointConfig(at=0.0, proportions={"web": 3.0, "wiki": 1.0}),
        CurriculumPointConfig(at=0.5, proportions={"web": 1.0, "wiki": 1.0}),
        CurriculumPointConfig(at=1.0, proportions={"wiki": 1.0}),
    ]
    readers = [stream(three, r, ranks, num_workers=workers, curriculum=points, prefetch=4) for r in range(ranks)]
    curriculum = Curriculum(points, ["train-web", "train-wiki"])
    assert [curriculum.shares(p)[1] for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.25, 0.375, 0.5, 0.75, 1.0]
    )
    taken, due = [], np.zeros(2)
    for step in range(41):
        expected = np.array(curriculum.shares(step / 40))
        numbers: list[int] = []
        for reader in readers:
            reader.plan.shares = list(expected)
            numbers += number_of(reader.take(10))
        due += 10 * ranks * expected
        taken += numbers
        assert np.abs(np.array(shares(taken)[:2]) - due).max() < 1.0  # exact to the row at every step
        if step == 20:  # the position includes the rows owed to a stream
            place = readers[0].state_dict()
            readers = [stream(three, r, ranks, curriculum=points) for r in range(ranks)]
            for reader in readers:
                reader.load_state_dict(place)
    for low, high in ((0, 240), (240, 320)):
        mine = [n for n in taken if low <= n < high]
        assert mine == [low + i % (high - low) for i in range(len(mine))]  # this data set has a stored order


def test_a_random_walk_of_ranks_workers_and_sizes_delivers_the_sequence(root: Path):
    rng = random.Random(3)
    expected, place, at = number_of(stream(root).take(3000)), None, 0
    while at < 2500:
        ranks, workers = rng.choice([(1, 0), (1, 1), (1, 2), (2, 0), (4, 0)])
        readers = [stream(root, r, ranks, num_workers=workers, prefetch=rng.choice([0, 2, 64])) for r in range(ranks)]
        for reader in readers:
            if place is not None:
                reader.load_state_dict(place)
        for _ in range(rng.randint(1, 5)):
            count = rng.randint(1, 40)
            found = [number for reader in readers for number in number_of(reader.take(count))]
            assert found == expected[at : at + count * ranks]
            at += count * ranks
        place = readers[-1].state_dict()
        close_shared_memory()


def test_shared_memory_name_taken_by_another_program_is_replaced(root: Path, monkeypatch):
    real, taken = prefix.SharedMemory, []

    def memory(name: str, create: bool, *size: int):
        if create and len(taken) < 2:
            taken.append(real(name, True, 64))
            taken[-1].buf[:5] = np.int32(5).tobytes() + b"0"  # the other data set has no folders
        return real(name, create, *size)

    monkeypatch.setattr(prefix, "SharedMemory", memory)
    rows = stream(root).take(8)
    for other in taken:
        other.cleanup()
    assert len(taken) == 2 and number_of(rows) == number_of(stream(root).take(8))


def test_cutting_rows_loses_no_token_and_truncating_keeps_their_heads(root: Path):
    plain, cut, short = loader(root), loader(root), loader(root)
    cut.seq_length = short.seq_length = 8
    short.truncate = True
    full, pieces, heads = (next(iter(one))["input_ids"] for one in (plain, cut, short))
    assert full.shape == (32, LENGTH) and pieces.shape == (64, 8) and heads.shape == (32, 8)
    rows = torch.from_numpy(stream(root).take(32).astype(np.int64))
    kept = [batch != 4 for batch in (full, pieces, heads)]
    assert (pieces == rows.reshape(64, 8))[kept[1]].float().mean() > 0.9  # all except random replacements
    assert (heads == rows[:, :8])[kept[2]].float().mean() > 0.9


def test_rows_beyond_whole_microbatches_are_split_into_few_shapes(root: Path):
    one = loader(root)
    batches = iter(one)
    for rows, seq_length, lengths in ((24, 16, [16, 8]), (8, 8, [16]), (12, 16, [4, 4, 4]), (20, 8, [32, 8])):
        one.rows, one.seq_length = rows, seq_length
        batch = next(batches)
        parts = one.split_batch(batch, 16)
        assert [len(part["input_ids"]) for part in parts] == lengths
        assert torch.equal(torch.cat([part["labels"] for part in parts]), batch["labels"])


def test_batches_of_any_size_split_into_microbatches(root: Path):
    one = loader(root)
    batches = iter(one)
    for rows, seq_length, shape in ((32, 16, (16, 16)), (48, 8, (32, 8)), (16, 4, (64, 4))):
        one.rows, one.seq_length = rows, seq_length
        batch = next(batches)
        parts = one.split_batch(batch, 16)
        assert len(parts) == rows // 16
        assert all(part["input_ids"].shape == shape for part in parts)
        assert torch.equal(torch.cat([part["labels"] for part in parts]), batch["labels"])


@pytest.mark.parametrize("seq_length", [16, 8])
def test_masks_do_not_depend_on_the_number_of_ranks(root: Path, seq_length: int):
    alone, pair = loader(root, rows=32), [loader(root, rank, 2, rows=16) for rank in (0, 1)]
    for one in (alone, *pair):
        one.seq_length = seq_length
    for batch, *parts in zip(*(iter(one) for one in (alone, *pair)), strict=False):
        assert all(torch.equal(batch[name], torch.cat([part[name] for part in parts])) for name in batch)
        if alone.step == 5:
            break


def test_a_loader_resumes_with_the_same_rows_and_masks(root: Path):
    one, other = loader(root), loader(root)
    batches = iter(one)
    seen = [next(batches) for _ in range(5)]
    assert not torch.equal(seen[0]["masked_positions"], seen[1]["masked_positions"])
    other.load_state_dict(one.state_dict())
    expected, found = next(batches), next(iter(other))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_evaluation_batches_divide_rows_and_have_fixed_masks(root: Path):
    rows, _ = open_held_out(PreparedDataset(root, load_manifest(root)), "validation", 60)
    assert number_of(rows) == list(range(ROWS, ROWS + 60))
    collator = evaluation_collator(200, (0, 1, 2, 3, 4), 4)
    alone = evaluation_batches(rows, collator, 15)
    shared = [evaluation_batches(rows, collator, 15, rank, 2) for rank in (0, 1)]
    assert len(alone) == 4 and [len(part) for part in shared] == [2, 2]
    for index, batch in enumerate(alone):
        assert torch.equal(batch["labels"], shared[index % 2][index // 2]["labels"])


def test_evaluation_masks_do_not_depend_on_the_batch_size():
    rows = np.random.default_rng(0).integers(5, 200, (300, LENGTH))
    collator = evaluation_collator(200, (0, 1, 2, 3, 4), 4)
    expected, found = (
        torch.cat([batch["input_ids"] for batch in evaluation_batches(rows, collator, size)]) for size in (100, 75)
    )
    assert torch.equal(expected, found) and len(found) == 300


def test_order_is_that_of_the_first_start_under_another_cache_limit(root: Path, tmp_path: Path):
    data = PreparedDataset(tmp_path, load_manifest(root), remote=str(root), cache_limit=20_000)
    reader = open_train(data, DataConfig(local=str(tmp_path), remote=str(root), num_workers=0), seed=7)
    assert not np.array_equal(reader.take(ROWS), stream(root).take(ROWS))  # a small cache is read in another order
    place = reader.state_dict()
    resumed = stream(root)
    resumed.load_state_dict(place)
    assert np.array_equal(resumed.take(ROWS), reader.take(ROWS))


def test_shuffling_gives_no_warnings(root: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stream(root).take(ROWS)


def test_batches_prepared_ahead_are_those_of_the_settings_at_their_step(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    plain, ahead = loader(root), loader(root, pin_memory=True)
    prepared = []
    monkeypatch.setattr(
        ahead, "_prepare", lambda settings: prepared.append(settings) or TrainLoader._prepare(ahead, settings)
    )
    for changes in ({}, {}, {"rows": 24}, {}, {"mlm_probability": 0.1}, {"seq_length": LENGTH // 2}, {}):
        for one in (plain, ahead):
            for name, value in changes.items():
                setattr(one, name, value)
        expected, found = next(iter(plain)), next(iter(ahead))
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert plain.state_dict() == ahead.state_dict()  # the batch in preparation does not count
    ahead._ahead._thread.join()
    assert len(prepared) == 1 + 7 + 3  # the first, one ahead of every step, and one after every change


def test_a_failure_ahead_ends_the_step_that_needs_the_batch(root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    reader = loader(root, pin_memory=True)
    batches = iter(reader)
    next(batches)
    reader._ahead._thread.join()
    monkeypatch.setattr(reader.stream, "peek", lambda rows: (_ for _ in ()).throw(CramError("no rows")))
    next(batches)  # prepared before
    with pytest.raises(CramError, match="no rows"):
        next(batches)
