"""The registry of algorithms by field of `AlgorithmsConfig`, and the ordered list of algorithms of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Algorithm
from torch import nn

from cram_composer.algorithms.adaptive_masking import adaptive_masking
from cram_composer.algorithms.averaging.ema import EMA
from cram_composer.algorithms.averaging.lawa import LAWA
from cram_composer.algorithms.averaging.swa import SWA
from cram_composer.algorithms.batch_size_ramp import BatchSizeRamp
from cram_composer.algorithms.data_curriculum import DataCurriculum
from cram_composer.algorithms.gradient_clipping import gradient_clipping
from cram_composer.algorithms.label_smoothing import LabelSmoothing
from cram_composer.algorithms.layer_freezing import LayerFreezing
from cram_composer.algorithms.masking_schedule import MaskingSchedule
from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.algorithms.norms.fused_layernorm import FusedLayerNorm
from cram_composer.algorithms.norms.low_precision_layernorm import LowPrecisionNorms
from cram_composer.algorithms.optimizer_hooks import optimizer_hooks
from cram_composer.algorithms.sam import SAM
from cram_composer.algorithms.seq_length_warmup import SeqLengthWarmup
from cram_composer.algorithms.stochastic_depth import StochasticLayers
from cram_composer.budget.budget import Budget
from cram_composer.config.schema.algorithms import AlgorithmsConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.data.loading.mixture import Curriculum, select_streams
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.data.manifest import Manifest
from cram_composer.scaleout.strategy import Strategy


@dataclass(frozen=True)
class AlgorithmContext:
    """Parts of a run that algorithms use.

    Attributes:
        budget: progress of the run.
        loader: the training loader.
        world_size: number of devices.
        seed: random seed of the run.
        gradient_norm: returns the norm of all gradients of the current step, None if unknown; see `NormClipping`.
    """

    budget: Budget
    loader: TrainLoader
    world_size: int
    seed: int
    gradient_norm: Callable[[], torch.Tensor | None] = lambda: None


REGISTRY: dict[str, Callable[[Any, AlgorithmContext], Algorithm]] = {
    "gradient_clipping": lambda config, context: gradient_clipping(config, context.gradient_norm),
    "seq_length_warmup": lambda config, context: SeqLengthWarmup(config, context.budget, context.loader),
    "batch_size_ramp": lambda config, context: BatchSizeRamp(
        config, context.budget, context.loader, context.world_size
    ),
    "label_smoothing": lambda config, context: LabelSmoothing(config),
    "stochastic_depth": lambda config, context: StochasticLayers(config, context.budget, context.seed),
    "layer_freezing": lambda config, context: LayerFreezing(config, context.budget),
    "sam": lambda config, context: SAM(config),
    "ema": lambda config, context: EMA(config, context.budget),
    "swa": lambda config, context: SWA(config, context.budget),
    "lawa": lambda config, context: LAWA(config, context.budget),
    "fused_layernorm": lambda config, context: FusedLayerNorm(),
    "low_precision_layernorm": lambda config, context: LowPrecisionNorms(),
}


def build_run_algorithms(
    config: RunConfig,
    budget: Budget,
    loader: TrainLoader,
    manifest: Manifest,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    strategy: Strategy,
    guard: NonFiniteGuard,
) -> list[Algorithm]:
    """Build all algorithms of a run, in the order in which Composer gets them.

    Composer runs algorithms in this order, and in reverse at events whose names begin with "after". The algorithms that
    complete the gradients of a step are therefore last, directly after `guard`. So the guard checks complete gradients,
    before clipping turns an infinite gradient into a finite one.
    """
    context = AlgorithmContext(budget, loader, strategy.world_size, config.seed, lambda: guard.norm)
    algorithms: list[Algorithm] = []
    if config.data.curriculum:
        splits = [stream.split for stream in select_streams(config.data, manifest)]
        algorithms.append(DataCurriculum(Curriculum(config.data.curriculum, splits), budget, loader))
    algorithms += optimizer_hooks(optimizer, model, budget)
    if config.objective.final_mlm_probability or config.objective.has_phases:
        algorithms.append(MaskingSchedule(config.objective, budget, loader))
    algorithms += adaptive_masking(config.objective, loader, model)
    algorithms += build_algorithms(strategy.algorithms(), context)
    return [*algorithms, guard, *strategy.pre_step_algorithms()]


def build_algorithms(config: AlgorithmsConfig, context: AlgorithmContext) -> list[Algorithm]:
    """Build the algorithms that are switched on, in the order of the schema."""
    return [REGISTRY[name](settings, context) for name, settings in config if settings is not None]
