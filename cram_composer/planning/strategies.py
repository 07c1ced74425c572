"""Memory per device of each sharding strategy, calculated from the memory of one step.

Weights, gradients and optimizer state count in fp32, as Composer's mixed precision keeps them; activations are those of
one microbatch under every strategy. Sharded parts are assumed to divide evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.deepspeed import DEFAULT_STAGE
from cram_composer.planning.memory import StepMemory

# DeepSpeed's defaults, in elements: reduce_bucket_size and stage3_max_live_parameters (stage3_max_reuse_distance is as
# large, so a smaller model is never released).
_BUCKET_ELEMENTS = 500_000_000
_MAX_LIVE_PARAMETERS = 1_000_000_000
_FP32 = 4
_USABLE_FRACTION = 0.9  # usable share of a device's memory: the rest is for the CUDA context, NCCL and fragmentation


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device and in host memory for it; `communication` is buckets and gathered shards."""

    weights: float
    gradients: float
    optimizer: float
    communication: float
    host: float = 0.0


def ddp(step: StepMemory, devices: int) -> DeviceMemory:
    """Replicate everything (Li et al. 2020, arXiv 2006.15704); buckets hold a second copy of the gradients."""
    return DeviceMemory(step.weights, step.gradients, step.optimizer, step.gradients if devices > 1 else 0.0)


def fsdp2(step: StepMemory, devices: int) -> DeviceMemory:
    """Shard weights, gradients and state layer by layer (Zhao et al. 2023, arXiv 2304.11277).

    Gathered at the same time are all weights outside the layers, the current and the next layer, and the gradients of
    the first two before they are scattered.
    """
    gathered = 2 * step.outside_layers + 3 * step.largest_layer if devices > 1 else 0.0
    return DeviceMemory(step.weights / devices, step.gradients / devices, step.optimizer / devices, gathered)


def zero_1(step: StepMemory, devices: int) -> DeviceMemory:
    """Shard optimizer state, with DeepSpeed's own fp32 copy of the weights (ZeRO, arXiv 1910.02054, section 5)."""
    return DeviceMemory(step.weights, step.gradients, (step.optimizer + step.weights) / devices, _bucket_bytes(step))


def zero_2(step: StepMemory, devices: int) -> DeviceMemory:
    """Also shard gradients."""
    state = (step.optimizer + step.weights) / devices
    return DeviceMemory(step.weights, step.gradients / devices, state, _bucket_bytes(step))


def zero_3(step: StepMemory, devices: int) -> DeviceMemory:
    """Also shard weights; up to 10^9 of them stay gathered after use."""
    state = (step.optimizer + step.weights) / devices
    gathered = _FP32 * min(step.parameters, _MAX_LIVE_PARAMETERS)
    return DeviceMemory(step.weights / devices, step.gradients / devices, state, gathered + _bucket_bytes(step))


def zero_2_offload(step: StepMemory, devices: int) -> DeviceMemory:
    """Use ZeRO-2 with state, gradients and the optimizer step in host memory (ZeRO-Offload, arXiv 2101.06840)."""
    return _offload(zero_2(step, devices))


def zero_3_offload(step: StepMemory, devices: int) -> DeviceMemory:
    """Use ZeRO-3 with state, gradients and the optimizer step in host memory."""
    return _offload(zero_3(step, devices))


def _offload(sizes: DeviceMemory) -> DeviceMemory:
    return DeviceMemory(sizes.weights, 0.0, 0.0, sizes.communication, sizes.optimizer + sizes.gradients)


def _bucket_bytes(step: StepMemory) -> float:
    return min(step.gradients, _FP32 * _BUCKET_ELEMENTS)


STRATEGIES: dict[str, Callable[[StepMemory, int], DeviceMemory]] = {
    "ddp": ddp,
    "fsdp2": fsdp2,
    "zero-1": zero_1,
    "zero-2": zero_2,
    "zero-3": zero_3,
    "zero-2 offload": zero_2_offload,
    "zero-3 offload": zero_3_offload,
}


def strategy_name(config: RunConfig) -> str:
    """Return the key in STRATEGIES of a run's strategy."""
    if config.scaleout.strategy != "deepspeed":
        return "fsdp2" if config.scaleout.strategy == "fsdp2" else "ddp"
    zero = {"stage": DEFAULT_STAGE, **config.scaleout.deepspeed.get("zero_optimization", {})}
    device = (zero.get("offload_optimizer") or {}).get("device", "none")
    name = f"zero-{zero['stage']}"
    return f"{name} offload" if device == "cpu" and f"{name} offload" in STRATEGIES else name


_SHARDED_WEIGHTS = ("fsdp2", "zero-3", "zero-3 offload")  # their averages are sharded too


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes per device under a strategy.

    Attributes:
        verdict: fits, tight (over nine tenths), too large, or None.
        largest_microbatch: the largest that fits, 0 for none; set if the verdict is tight or too large.
        refused: setting of the run that the strategy does not support; empty if all are supported.
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


def estimate_memory(
    strategy: str, step: StepMemory, devices: int, microbatch: int, allowed: list[int], memory: int | None
) -> MemoryEstimate:
    """Estimate the memory of a device and compare it with `memory` bytes; `allowed` are the possible microbatches."""
    sizes = STRATEGIES[strategy](step, devices)
    shares = devices if strategy in _SHARDED_WEIGHTS else 1
    averages, averages_host = step.averages / shares, step.averages_host / shares
    fixed = sizes.weights + sizes.gradients + sizes.optimizer + sizes.communication + averages
    total = fixed + step.activations(microbatch)
    verdict = largest = None
    if memory is not None:
        verdict = "fits" if total <= _USABLE_FRACTION * memory else "tight" if total <= memory else "too large"
        if verdict != "fits":
            fitting = [rows for rows in allowed if fixed + step.activations(rows) <= _USABLE_FRACTION * memory]
            largest = max(fitting, default=0)
    return MemoryEstimate(
        strategy=strategy,
        **{**asdict(sizes), "host": sizes.host + averages_host},
        averages=averages,
        activations=step.activations(microbatch),
        total=total,
        verdict=verdict,
        largest_microbatch=largest,
    )
