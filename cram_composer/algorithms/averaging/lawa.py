"""Latest weight averaging: the mean of the latest k weights, taken at intervals of the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cram_composer.algorithms.averaging.weight_average import PeriodicAverage, Weights, local_weights
from cram_composer.budget.budget import Budget
from cram_composer.config.schema.algorithms import LawaConfig


class LAWA(PeriodicAverage):
    """Kaddour 2022, arXiv 2209.14981, algorithm 1; an interval of the budget replaces the paper's epoch.

    There is no average before k snapshots exist. Snapshots are kept in host memory.
    """

    def __init__(self, config: LawaConfig, budget: Budget) -> None:
        super().__init__(budget, config.update_interval, config.update_interval)
        self._k = config.k
        self._latest: list[Weights] = []  # oldest first

    def average(self) -> Weights:
        """The mean of the latest k weights; empty before k snapshots exist."""
        if len(self._latest) < self._k:
            return {}
        return {name: torch.stack([weights[name] for weights in self._latest]).mean(0) for name in self._latest[0]}

    def map_snapshots(self, change: Callable[[Weights], Weights]) -> None:
        """Each of the latest weights."""
        self._latest = [{name: t.cpu() for name, t in change(weights).items()} for weights in self._latest]

    def add_snapshot(self, model: nn.Module) -> None:
        """Append these weights and keep the latest k."""
        weights = {name: held.to("cpu", copy=True) for name, held in local_weights(model)}
        self._latest = [*self._latest, weights][-self._k :]

    def state_dict(self) -> dict[str, Any]:
        """The latest weights and their mean."""
        return super().state_dict() | {"latest": [self.gathered(weights) for weights in self._latest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        super().load_state_dict(state)
        self._latest = list(state["latest"])
