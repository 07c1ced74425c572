"""Exponential moving average of the weights, with a half-life in budget progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger

from cram_composer.algorithms.averaging.weight_average import WeightAverage, Weights, local_weights
from cram_composer.budget.budget import Budget
from cram_composer.config.schema.algorithms import EmaConfig


class EMA(WeightAverage):
    """Keep an average of the trained weights; evaluate with it, and export it.

    After every step, average <- average + (1 - 2^(-d / half_life)) (weights - average), where d is the progress between
    the start of this step and the start of the one before.
    Composer's EMA has a half-life in batches or epochs, whose number a wall-clock run does not know beforehand.
    """

    def __init__(self, config: EmaConfig, budget: Budget) -> None:
        super().__init__(budget)
        self._config = config
        self._last_progress = 0.0
        self._average: Weights = {}

    def average(self) -> Weights:
        """The average so far."""
        return self._average

    def map_snapshots(self, change: Callable[[Weights], Weights]) -> None:
        """The average."""
        self._average = change(self._average)

    def match(self, event: Event, state: State) -> bool:
        """At the start, after every step and around evaluation."""
        return event == Event.BATCH_END or super().match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Start or update the average, or exchange it with the trained weights."""
        super().apply(event, state, logger)
        if event == Event.BATCH_END:
            if int(state.timestamp.batch) % self._config.update_interval == 0:
                self._update(state.model)
        elif event == Event.FIT_START and not self._average:
            self._last_progress = self._budget.progress
            self._average = {name: held.clone() for name, held in local_weights(state.model)}

    @torch.no_grad()
    def _update(self, model: torch.nn.Module) -> None:
        moved = self._budget.progress - self._last_progress
        self._last_progress = self._budget.progress
        weights = dict(local_weights(model))
        averages = [self._average[name] for name in weights]
        torch._foreach_lerp_(averages, list(weights.values()), 1.0 - 0.5 ** (moved / self._config.half_life))

    def state_dict(self) -> dict[str, Any]:
        """The average and the progress it has seen."""
        return super().state_dict() | {"last_progress": self._last_progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state)
        self._average = dict(state["average"])
        self._last_progress = state["last_progress"]
