"""Layer freezing: the lowest layers stop training as the budget is spent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.algorithms.layer_hooks import wrap_layer_calls
from cram_composer.budget.budget import Budget
from cram_composer.config.schema.algorithms import LayerFreezingConfig
from cram_composer.models.training_model import MaskedLMTrainingModel


class LayerFreezing(Algorithm):
    """Freeze training (Raghu et al. 2017, arXiv 1706.05806, section 4.2), with Composer's parameter names.

    From `freeze_start` on, the share of frozen layers grows linearly from 0 to `freeze_level` at the end of the budget.
    Frozen layers run without autograd, so they and everything below keep no activations and run no backward pass. The
    optimizer skips weights without a gradient, including their momentum and weight decay. Progress alone determines the
    frozen layers, so there is no state to save.

    A tied token embedding still gets the decoder's gradient; an untied one and position embeddings freeze with the
    first layer. Unlike in the paper, the input of a frozen layer can therefore still change. Freezing the decoder too
    would limit the layers above.

    Composer's LayerFreezing acts at epoch ends, and its checkpoints cannot be resumed.
    """

    def __init__(self, config: LayerFreezingConfig, budget: Budget) -> None:
        self._config = config
        self._budget = budget
        self._layers = 0
        self._frozen = 0

    @property
    def find_unused_parameters(self) -> bool:
        """Tell DDP that some parameters get no gradient."""
        return True

    def match(self, event: Event, state: State) -> bool:
        """Match the start of the run and every step."""
        return event in (Event.INIT, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Wrap the layers at the start; set the number of frozen layers at each step."""
        if event == Event.INIT:
            network = cast(MaskedLMTrainingModel, state.model).model
            self._layers = wrap_layer_calls(network, self._run, "algorithms.layer_freezing")
            return
        frozen = int(self._frozen_share() * self._layers + 1e-9)
        if frozen != self._frozen:
            self._frozen = frozen
            logger.log_metrics({"layer_freezing/layers_frozen": frozen})

    def _frozen_share(self) -> float:
        start = self._config.freeze_start
        past = max(0.0, self._budget.progress - start)
        return self._config.freeze_level * past / (1.0 - start) if past else 0.0

    def _run(self, index: int, call: Callable[..., Any], hidden: torch.Tensor, *others: Any, **named: Any) -> Any:
        if index >= self._frozen:
            return call(hidden, *others, **named)
        with torch.no_grad():
            # A detached input makes the first layer share the graph of the others.
            return call(hidden.detach(), *others, **named)
