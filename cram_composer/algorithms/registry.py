"""The registry of algorithms: a field of `config.schema.AlgorithmsConfig` and the function that builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Algorithm

from cram_composer.algorithms.averaging.ema import EMA
from cram_composer.algorithms.averaging.lawa import LAWA
from cram_composer.algorithms.averaging.swa import SWA
from cram_composer.algorithms.batch_size_ramp import BatchSizeRamp
from cram_composer.algorithms.gradient_clipping import gradient_clipping
from cram_composer.algorithms.label_smoothing import LabelSmoothing
from cram_composer.algorithms.layer_freezing import LayerFreezing
from cram_composer.algorithms.norms.fused_layernorm import FusedLayerNorm
from cram_composer.algorithms.norms.low_precision_layernorm import LowPrecisionNorms
from cram_composer.algorithms.sam import SAM
from cram_composer.algorithms.seq_length_warmup import SeqLengthWarmup
from cram_composer.algorithms.stochastic_depth import StochasticLayers
from cram_composer.budget.budget import Budget
from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.data.loading.stream import TrainLoader


@dataclass(frozen=True)
class Parts:
    """What an algorithm may need of the run it is in."""

    budget: Budget
    loader: TrainLoader
    world_size: int
    seed: int
    gradient_norm: Callable[[], torch.Tensor | None] = lambda: None  # as `NormClipping` takes it


REGISTRY: dict[str, Callable[[Any, Parts], Algorithm]] = {
    "gradient_clipping": lambda config, parts: gradient_clipping(config, parts.gradient_norm),
    "seq_length_warmup": lambda config, parts: SeqLengthWarmup(config, parts.budget, parts.loader),
    "batch_size_ramp": lambda config, parts: BatchSizeRamp(config, parts.budget, parts.loader, parts.world_size),
    "label_smoothing": lambda config, parts: LabelSmoothing(config),
    "stochastic_depth": lambda config, parts: StochasticLayers(config, parts.budget, parts.seed),
    "layer_freezing": lambda config, parts: LayerFreezing(config, parts.budget),
    "sam": lambda config, parts: SAM(config),
    "ema": lambda config, parts: EMA(config, parts.budget),
    "swa": lambda config, parts: SWA(config, parts.budget),
    "lawa": lambda config, parts: LAWA(config, parts.budget),
    "fused_layernorm": lambda config, parts: FusedLayerNorm(),
    "low_precision_layernorm": lambda config, parts: LowPrecisionNorms(),
}


def build_algorithms(config: AlgorithmsConfig, parts: Parts) -> list[Algorithm]:
    """The algorithms that are switched on, in the order of the schema."""
    return [REGISTRY[name](settings, parts) for name, settings in config if settings is not None]
