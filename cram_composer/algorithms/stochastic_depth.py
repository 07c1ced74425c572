"""Stochastic depth: skip layers at random in training, deep layers more often."""

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
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382, section 3), with Composer's parameter names.

    Layer l of L is skipped with probability drop_rate l / L (`linear`, as in the paper) or drop_rate (`uniform`). The
    probability grows linearly from 0 over the first `drop_warmup` of the budget. With `block` a layer is skipped for
    the whole step, which makes the step cheaper. The draw depends only on seed and step, so it is the same on all
    devices and after a resume. With `sample` a layer is skipped for some rows, but computed for all.

    The contribution of a layer is divided by the probability that it runs, so evaluation and exports need no change;
    the paper multiplies at evaluation instead. The first step skips nothing, because an optimizer's checkpoint omits
    parameters that never had a gradient.

    The class is not named StochasticDepth: Composer would take it for its own, which is for ResNets, when it loads a
    checkpoint.
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
        """Tell DDP that some parameters get no gradient."""
        return self._config.stochastic_method == "block"

    def match(self, event: Event, state: State) -> bool:
        """Match the start of the run and every step."""
        return event in (Event.INIT, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Wrap the layers at the start; draw the layers to skip at each step."""
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
