"""Memory per device of each way of sharing a model out among devices, counted from what one step holds.

All counts are for weights, gradients and optimizer state in fp32, as Composer's mixed precision keeps them; activations
are those of one microbatch and the same everywhere. What is shared out is taken to divide evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from cram_composer.planning.memory import StepMemory

# DeepSpeed's defaults, in elements: reduce_bucket_size and stage3_max_live_parameters (stage3_max_reuse_distance is as
# large, so that a smaller model is never released).
_BUCKET = 500_000_000
_LIVE = 1_000_000_000
_FP32 = 4
_ROOM = 0.9  # of a device's memory: the rest is for the CUDA context, NCCL and what the allocator cannot use


@dataclass(frozen=True)
class Held:
    """Bytes on one device, and of the host's memory for it. `communication`: buckets, and gathered shards."""

    weights: float
    gradients: float
    optimizer: float
    communication: float
    host: float = 0.0


def ddp(step: StepMemory, devices: int) -> Held:
    """Everything on every device (Li et al. 2020, arXiv 2006.15704), and gradients once more in the buckets."""
    return Held(step.weights, step.gradients, step.optimizer, step.gradients if devices > 1 else 0.0)


def fsdp2(step: StepMemory, devices: int) -> Held:
    """Weights, gradients and state shared out, layer by layer (Zhao et al. 2023, arXiv 2304.11277).

    Gathered at a time: all that is outside the layers, a layer that computes and the next one; and the gradients of the
    former two, before they are scattered.
    """
    gathered = 2 * step.outside_layers + 3 * step.largest_layer if devices > 1 else 0.0
    return Held(step.weights / devices, step.gradients / devices, step.optimizer / devices, gathered)


def zero_1(step: StepMemory, devices: int) -> Held:
    """Optimizer state shared out, with DeepSpeed's own fp32 copy of the weights (ZeRO, arXiv 1910.02054, section 5)."""
    return Held(step.weights, step.gradients, (step.optimizer + step.weights) / devices, _bucket(step))


def zero_2(step: StepMemory, devices: int) -> Held:
    """Gradients too."""
    state = (step.optimizer + step.weights) / devices
    return Held(step.weights, step.gradients / devices, state, _bucket(step))


def zero_3(step: StepMemory, devices: int) -> Held:
    """Weights too; up to 10^9 of them stay gathered where they have been used."""
    state = (step.optimizer + step.weights) / devices
    gathered = _FP32 * min(step.parameters, _LIVE)
    return Held(step.weights / devices, step.gradients / devices, state, gathered + _bucket(step))


def zero_2_offload(step: StepMemory, devices: int) -> Held:
    """ZeRO-2 whose state and gradients are in the host's memory, and stepped there (ZeRO-Offload, arXiv 2101.06840)."""
    return _offloaded(zero_2(step, devices))


def zero_3_offload(step: StepMemory, devices: int) -> Held:
    """ZeRO-3, the same."""
    return _offloaded(zero_3(step, devices))


def _offloaded(held: Held) -> Held:
    return Held(held.weights, 0.0, 0.0, held.communication, held.optimizer + held.gradients)


def _bucket(step: StepMemory) -> float:
    return min(step.gradients, _FP32 * _BUCKET)


STRATEGIES: dict[str, Callable[[StepMemory, int], Held]] = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "zero-1": zero_1,
    "zero-2": zero_2,
    "zero-3": zero_3,
    "zero-2 offload": zero_2_offload,
    "zero-3 offload": zero_3_offload,
}


_SHARDED_WEIGHTS = ("fsdp2", "zero-3", "zero-3 offload")  # averages are kept in the same shards


@dataclass(frozen=True)
class Estimate:
    """Bytes per device under a strategy. `verdict` is fits, tight (over nine tenths), too large, or None.

    `refused` is the setting of the run that the strategy cannot do; empty if it can do all.

    `largest_microbatch` is given for what is tight or too large: the largest that fits, 0 for none.
    """

    strategy: str
    weights: float
    gradients: float
    optimizer: float
    communication: float
    averages: float
    activations: float
    host: float
    total: float
    verdict: str | None = None
    largest_microbatch: int | None = None
    refused: str = ""


def estimate(
    strategy: str, step: StepMemory, devices: int, microbatch: int, allowed: list[int], memory: int | None
) -> Estimate:
    """What a device holds, and whether `memory` bytes are enough; `allowed` are the microbatches to choose from."""
    held = STRATEGIES[strategy](step, devices)
    shares = devices if strategy in _SHARDED_WEIGHTS else 1
    averages, averages_host = step.averages / shares, step.averages_host / shares
    fixed = held.weights + held.gradients + held.optimizer + held.communication + averages
    total = fixed + step.activations(microbatch)
    verdict = largest = None
    if memory is not None:
        verdict = "fits" if total <= _ROOM * memory else "tight" if total <= memory else "too large"
        if verdict != "fits":
            fitting = [rows for rows in allowed if fixed + step.activations(rows) <= _ROOM * memory]
            largest = max(fitting, default=0)
    return Estimate(
        strategy=strategy,
        **{**asdict(held), "host": held.host + averages_host},
        averages=averages,
        activations=step.activations(microbatch),
        total=total,
        verdict=verdict,
        largest_microbatch=largest,
    )
