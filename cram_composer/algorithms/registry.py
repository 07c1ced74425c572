"""The registry of algorithms: a field of `config.schema.AlgorithmsConfig` and the function that builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from composer.algorithms import GradientClipping
from composer.core import Algorithm

from cram_composer.algorithms.batch_size_ramp import BatchSizeRamp
from cram_composer.algorithms.ema import EMA
from cram_composer.algorithms.fused_layernorm import FusedLayerNorm
from cram_composer.algorithms.seq_length_warmup import SeqLengthWarmup
from cram_composer.budget.budget import Budget
from cram_composer.config.algorithms_schema import AlgorithmsConfig
from cram_composer.data.stream import TrainLoader


@dataclass(frozen=True)
class Parts:
    """What an algorithm may need of the run it is in."""

    budget: Budget
    loader: TrainLoader
    world_size: int


REGISTRY: dict[str, Callable[[Any, Parts], Algorithm]] = {
    "gradient_clipping": lambda config, parts: GradientClipping(config.clipping_type, config.clipping_threshold),
    "seq_length_warmup": lambda config, parts: SeqLengthWarmup(config, parts.budget, parts.loader),
    "batch_size_ramp": lambda config, parts: BatchSizeRamp(config, parts.budget, parts.loader, parts.world_size),
    "ema": lambda config, parts: EMA(config, parts.budget),
    "fused_layernorm": lambda config, parts: FusedLayerNorm(),
}


def build_algorithms(config: AlgorithmsConfig, parts: Parts) -> list[Algorithm]:
    """The algorithms that are switched on, in the order of the schema."""
    settings = [(field.name, getattr(config, field.name)) for field in fields(config)]
    return [REGISTRY[name](setting, parts) for name, setting in settings if setting is not None]
