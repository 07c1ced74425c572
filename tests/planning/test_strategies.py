from __future__ import annotations

import pytest

from cram_composer.planning.memory import StepMemory
from cram_composer.planning.strategies import STRATEGIES, estimate_memory

# A million weights, half of them in four layers, and AdamW.
STEP = StepMemory(
    parameters=1_000_000,
    weights=4_000_000,
    gradients=4_000_000,
    optimizer=8_000_000,
    averages=0,
    averages_host=0,
    largest_layer=500_000,
    outside_layers=2_000_000,
    activations_fixed=1_000_000,
    activations_row=100_000,
)


def by(strategy: str, devices: int = 4, microbatch: int = 8, memory: int | None = None, step: StepMemory = STEP):
    return estimate_memory(strategy, step, devices, microbatch, [1, 2, 4, 8, 16], memory)


@pytest.mark.parametrize(
    "strategy, held, host",
    [
        ("ddp", 4.0 + 4.0 + 8.0 + 4.0, 0.0),
        ("fsdp2", 1.0 + 1.0 + 2.0 + 2 * 2.0 + 3 * 0.5, 0.0),
        ("zero-1", 4.0 + 4.0 + 3.0 + 4.0, 0.0),
        ("zero-2", 4.0 + 1.0 + 3.0 + 4.0, 0.0),
        ("zero-3", 1.0 + 1.0 + 3.0 + 4.0 + 4.0, 0.0),
        ("zero-2 offload", 4.0 + 4.0, 1.0 + 3.0),
        ("zero-3 offload", 1.0 + 4.0 + 4.0, 1.0 + 3.0),
    ],
)
def test_by_hand_on_four_devices(strategy: str, held: float, host: float):
    found = by(strategy)
    assert found.total == pytest.approx((held + 1.0 + 0.8) * 1e6)  # with eight rows of activations
    assert (found.activations, found.host, found.verdict) == (1.8e6, host * 1e6, None)


def test_one_device_has_no_sharding_and_no_buckets():
    assert by("ddp", devices=1).total == by("fsdp2", devices=1).total == (4.0 + 4.0 + 8.0 + 1.8) * 1e6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_more_devices_never_take_more(strategy: str):
    assert by(strategy, devices=8).total <= by(strategy, devices=2).total


def test_the_verdict_and_the_largest_microbatch_that_fits():
    total = by("ddp").total  # 21.8 MB
    assert by("ddp", memory=int(total / 0.9) + 1).verdict == "fits"
    assert by("ddp", memory=int(total) + 1).verdict == "tight"
    small = by("ddp", memory=24_000_000)  # room for 21.6: six rows, of which four are allowed
    assert (small.verdict, small.largest_microbatch) == ("tight", 4)
    none = by("ddp", memory=20_000_000)
    assert (none.verdict, none.largest_microbatch) == ("too large", 0)
