"""Stochastic depth: layers are left out at random in training, deep ones more often."""

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

_STREAM = 0x5D  # sets these draws apart from others of the same seed and step


class StochasticLayers(Algorithm):
    """Huang et al. 2016, arXiv 1603.09382, section 3, with Composer's parameter names.

    Layer l of L is left out with probability drop_rate l / L (`linear`, the paper's) or drop_rate (`uniform`), which
    grows in a line from 0 over the first `drop_warmup` of the budget. With `block` it is left out of the whole step,
    which makes the step cheaper: what to leave out is drawn from the seed and the step's number, hence alike on all
    devices and after a resume. With `sample` it is left out for some rows, and computed for all.

    What a layer adds, if it is there, is divided by the probability of that, so that the whole network runs as it is
    in evaluation and in exports; the paper multiplies there instead. The first step leaves nothing out, since an
    optimizer's checkpoint lacks what never had a gradient.

    Composer's StochasticDepth is for ResNets. A class of that name would be taken for it when a checkpoint is loaded.
    """

    def __init__(self, config: StochasticDepthConfig, budget: Budget, seed: int) -> None:
        self._config = config
        self._budget = budget
        self._seed = seed
        self._layers = 0
        self._rates: list[float] = []  # of the layers, in this step
        self._skipped: list[bool] = []

    @property
    def find_unused_parameters(self) -> bool:
        """DDP has to look for parameters that get no gradient."""
        return self._config.stochastic_method == "block"

    def match(self, event: Event, state: State) -> bool:
        """At the start and before every step."""
        return event in (Event.INIT, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set up the layers, or draw what this step leaves out."""
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
