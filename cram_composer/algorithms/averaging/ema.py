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
    """Exponential moving average of the weights, used for evaluation and export.

    After every step, average <- average + (1 - 2^(-d / half_life)) (weights - average), where d is the progress from
    the start of the previous step to the start of this one. Composer's EMA has a half-life in batches or epochs, whose
    number is unknown in advance in a wall-clock run.
    """

    def __init__(self, config: EmaConfig, budget: Budget) -> None:
        super().__init__(budget)
        self._config = config
        self._last_progress = 0.0
        self._average: Weights = {}

    def average(self) -> Weights:
        """Return the current average."""
        return self._average

    def map_snapshots(self, change: Callable[[Weights], Weights]) -> None:
        """Apply `change` to the average."""
        self._average = change(self._average)

    def match(self, event: Event, state: State) -> bool:
        """Match the start of the run, the end of every step, and evaluations."""
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
        """Return the average and the progress of its last update."""
        return super().state_dict() | {"last_progress": self._last_progress}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        super().load_state_dict(state)
        self._average = dict(state["average"])
        self._last_progress = state["last_progress"]
