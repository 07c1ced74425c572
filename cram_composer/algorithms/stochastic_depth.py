"""Stochastic depth: training skips layers at random, deep ones more often."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.algorithms.layer_hooks import wrap_layer_calls
from cram_composer.budget.budget import Budget
from cram_composer.budget.schedules import ramp
from cram_composer.config.schema.algorithms import StochasticDepthConfig
from cram_composer.models.training_model import MaskedLMTrainingModel

_STREAM = 0x5D  # separates these draws from others of the same seed and step


class StochasticLayers(Algorithm):
    """Huang et al. 2016, arXiv 1603.09382, section 3, with Composer's parameter names.

    Layer l of L is skipped with probability drop_rate l / L (`linear`, the paper's) or drop_rate (`uniform`), which
    grows linearly from 0 over the first `drop_warmup` of the budget. With `block` it is skipped for the whole step,
    which makes the step cheaper; the draw depends on the seed and the step only, so it is the same on all devices and
    after a resume. With `sample` it is skipped for some rows, but computed for all.

    The output that a layer adds is divided by the probability that it runs, so evaluation and exports use the network
    unchanged; the paper multiplies there instead. The first step skips nothing, because an optimizer's checkpoint lacks
    parameters that never had a gradient.

    Composer's StochasticDepth is for ResNets; on loading a checkpoint it would mistake a class of that name for it.
    """

    def __init__(self, config: StochasticDepthConfig, budget: Budget, seed: int) -> None:
        self._config = config
        self._budget = budget
        self._seed = seed
        self._layers = 0
        self._rates: list[float] = []  # by layer, in the current step
        self._skipped: list[bool] = []

    @property
    def find_unused_parameters(self) -> bool:
        """Have DDP find parameters without a gradient."""
        return self._config.stochastic_method == "block"

    def match(self, event: Event, state: State) -> bool:
        """At the start and before every step."""
        return event in (Event.INIT, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Wrap the layers, or draw the layers that this step skips."""
        if event == Event.INIT:
            model = cast(MaskedLMTrainingModel, state.model)
            self._layers = wrap_layer_calls(model.model, self._run, "algorithms.stochastic_depth")
            return
        step = int(state.timestamp.batch)
        rate = 0.0 if step == 0 else ramp(self._budget.progress, 0.0, self._config.drop_rate, self._config.drop_warmup)
        linear = self._config.drop_distribution == "linear"
        depths = [layer / self._layers if linear else 1.0 for layer in range(1, self._layers + 1)]
        self._rates = [rate * depth for depth in depths]
        draws = np.random.default_rng((self._seed, step, _STREAM)).random(self._layers).tolist()
        block = self._config.stochastic_method == "block"
        self._skipped = [block and draw < layer_rate for draw, layer_rate in zip(draws, self._rates, strict=True)]
        logger.log_metrics({"stochastic_depth/drop_rate": rate})

    def _run(self, index: int, call: Callable[..., torch.Tensor], hidden: torch.Tensor, *others: Any) -> torch.Tensor:
        rate = self._rates[index]
        if rate == 0.0:
            return call(hidden, *others)
        if self._skipped[index]:
            return hidden
        added = call(hidden, *others) - hidden
        if self._config.stochastic_method == "sample":
            added = added * (torch.rand(len(hidden), 1, 1, device=hidden.device) >= rate)
        return hidden + added / (1.0 - rate)
