"""Latest weight averaging: the mean of the latest k snapshots of the weights, taken at budget intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cram_composer.algorithms.averaging.weight_average import PeriodicAverage, Weights, local_weights
from cram_composer.budget.budget import Budget
from cram_composer.config.schema.algorithms import LawaConfig


class LAWA(PeriodicAverage):
    """LAWA (Kaddour 2022, arXiv 2209.14981, algorithm 1) with a budget interval in place of the paper's epoch.

    There is no average before k snapshots exist. Snapshots are kept in host memory.
    """

    def __init__(self, config: LawaConfig, budget: Budget) -> None:
        super().__init__(budget, config.update_interval, config.update_interval)
        self._k = config.k
        self._latest: list[Weights] = []  # oldest first

    def average(self) -> Weights:
        """Return the mean of the latest k snapshots; empty before k snapshots exist."""
        if len(self._latest) < self._k:
            return {}
        return {name: torch.stack([weights[name] for weights in self._latest]).mean(0) for name in self._latest[0]}

    def map_snapshots(self, change: Callable[[Weights], Weights]) -> None:
        """Apply `change` to each snapshot."""
        self._latest = [{name: t.cpu() for name, t in change(weights).items()} for weights in self._latest]

    def add_snapshot(self, model: nn.Module) -> None:
        """Append a snapshot and keep the latest k."""
        weights = {name: held.to("cpu", copy=True) for name, held in local_weights(model)}
        self._latest = [*self._latest, weights][-self._k :]

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshots and their mean."""
        return super().state_dict() | {"latest": [self.gathered(weights) for weights in self._latest]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        super().load_state_dict(state)
        self._latest = list(state["latest"])
