"""Algorithms driven by budget progress: the settings they change, and when."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from composer.core import Event

from cram_composer.algorithms.averaging.ema import EMA
from cram_composer.algorithms.batch_size_ramp import BatchSizeRamp
from cram_composer.algorithms.registry import REGISTRY
from cram_composer.algorithms.seq_length_warmup import SeqLengthWarmup
from cram_composer.budget.budget import Budget, Limits
from cram_composer.config.schema.algorithms import (
    AlgorithmsConfig,
    BatchSizeRampConfig,
    EmaConfig,
    SeqLengthWarmupConfig,
)
from cram_composer.errors import ConfigError


@pytest.fixture
def budget() -> Budget:
    return Budget(Limits(seconds=100.0))


def fake_loader(rows: int = 512, microbatch: int = 64, length: int = 128) -> SimpleNamespace:
    return SimpleNamespace(
        rows=rows,
        microbatch=microbatch,
        data_seq_length=length,
        seq_length=length,
        truncate=False,
        mlm_probability=0.25,
    )


def follow(algorithm, budget: Budget, loader, field: str, seconds: list[float]) -> list:
    found = []
    for elapsed in seconds:
        budget.advance(elapsed, 0, 0)
        assert algorithm.match(Event.BEFORE_DATALOADER, None)
        algorithm.apply(Event.BEFORE_DATALOADER, None, None)
        found.append(getattr(loader, field))
    return found


def test_the_registry_and_the_schema_name_the_same_algorithms():
    assert set(REGISTRY) == set(AlgorithmsConfig.model_fields)


@pytest.mark.parametrize("microbatch", [1, 16, 64, 512])
def test_the_batch_grows_to_its_full_size_with_any_microbatch(budget: Budget, microbatch: int):
    loader = fake_loader(microbatch=microbatch)
    ramp = BatchSizeRamp(BatchSizeRampConfig(initial_batch_size=64, until=0.6), budget, loader, world_size=1)
    assert follow(ramp, budget, loader, "rows", [0, 20, 30, 60, 100]) == [64, 192, 256, 512, 512]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize(("batch", "first"), [(8192, 256), (4096, 128), (32, 16), (8, 8)])
def test_the_first_batch_is_a_share_of_the_full_one(budget: Budget, batch: int, first: int, world_size: int):
    loader = fake_loader(rows=batch // world_size)
    ramp = BatchSizeRamp(BatchSizeRampConfig(), budget, loader, world_size)
    assert follow(ramp, budget, loader, "rows", [0, 60]) == [first // world_size, batch // world_size]


def test_a_full_batch_that_is_no_multiple_of_the_first_is_reached(budget: Budget):
    loader = fake_loader(rows=48)
    ramp = BatchSizeRamp(BatchSizeRampConfig(initial_batch_size=32, until=0.5), budget, loader, world_size=1)
    assert follow(ramp, budget, loader, "rows", [0, 49, 50]) == [32, 32, 48]


def test_the_ramp_counts_rows_over_all_devices(budget: Budget):
    loader = fake_loader()  # this rank's share of 1024 rows on two devices
    ramp = BatchSizeRamp(BatchSizeRampConfig(initial_batch_size=256, until=0.5), budget, loader, world_size=2)
    assert follow(ramp, budget, loader, "rows", [0, 50]) == [128, 512]


def test_rows_grow_through_the_divisors_of_the_full_length(budget: Budget):
    loader = fake_loader()
    warmup = SeqLengthWarmup(SeqLengthWarmupConfig(duration=0.3, min_seq_length=32), budget, loader)
    assert follow(warmup, budget, loader, "seq_length", [0, 9.9, 10, 29, 30, 100]) == [32, 32, 64, 64, 128, 128]
    assert not loader.truncate


def test_truncated_rows_grow_in_steps(budget: Budget):
    loader = fake_loader()
    config = SeqLengthWarmupConfig(duration=0.5, min_seq_length=32, step_size=32, truncate=True)
    warmup = SeqLengthWarmup(config, budget, loader)
    assert follow(warmup, budget, loader, "seq_length", [0, 20, 40, 50]) == [32, 64, 96, 128]
    assert loader.truncate


def test_a_start_longer_than_the_rows_is_rejected(budget: Budget):
    with pytest.raises(ConfigError, match=r"min_seq_length: must be <= 128, the tokens of a data row, got 256"):
        SeqLengthWarmup(SeqLengthWarmupConfig(min_seq_length=256), budget, fake_loader())


def test_ema_follows_its_formula_swaps_in_and_out_and_resumes(budget: Budget):
    model = torch.nn.Linear(3, 2)
    ema = EMA(EmaConfig(half_life=0.1), budget)
    state = SimpleNamespace(model=model, timestamp=SimpleNamespace(batch=1))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    ema.apply(Event.FIT_START, state, None)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    budget.advance(10.0, 0, 0)  # one half-life of progress
    ema.apply(Event.BATCH_END, state, None)

    ema.apply(Event.EVAL_START, state, None)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), 0.5 * start[name] + 0.5 * trained[name])
    ema.apply(Event.EVAL_END, state, None)
    for name, p in model.named_parameters():
        assert torch.equal(p.detach(), trained[name])

    again = EMA(EmaConfig(half_life=0.1), budget)
    again.load_state_dict(copy.deepcopy(ema.state_dict()))  # a copy, as from a checkpoint on disk
    budget.advance(20.0, 0, 0)
    for one in (ema, again):
        one.apply(Event.FIT_START, state, None)
        one.apply(Event.BATCH_END, state, None)
    for name, average in ema.state_dict()["average"].items():
        assert torch.equal(average, again.state_dict()["average"][name])
        torch.testing.assert_close(average, 0.25 * start[name] + 0.75 * trained[name])


def test_without_progress_the_average_does_not_change(budget: Budget):
    model = torch.nn.Linear(2, 2)
    ema = EMA(EmaConfig(half_life=0.1), budget)
    state = SimpleNamespace(model=model, timestamp=SimpleNamespace(batch=1))
    ema.apply(Event.FIT_START, state, None)
    before = {name: average.clone() for name, average in ema.state_dict()["average"].items()}
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.apply(Event.BATCH_END, state, None)
    assert all(torch.equal(before[name], average) for name, average in ema.state_dict()["average"].items())
