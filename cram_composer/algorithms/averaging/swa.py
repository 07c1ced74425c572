"""Stochastic weight averaging: the mean of the weights over the last part of the budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cram_composer.algorithms.averaging.weight_average import PeriodicAverage, Weights, local_weights
from cram_composer.budget.budget import Budget
from cram_composer.budget.schedules import Schedule
from cram_composer.config.schema.algorithms import SwaConfig


class SWA(PeriodicAverage):
    """SWA (Izmailov et al. 2018, arXiv 1803.05407, algorithm 1), with Composer's parameter names.

    Composer's SWA counts in epochs and cannot resume on several devices. Its `swa_end`, after which training updates
    batch-norm statistics, is not needed without batch norms.
    """

    def __init__(self, config: SwaConfig, budget: Budget) -> None:
        super().__init__(budget, config.swa_start, config.update_interval)
        self._average: Weights = {}
        self._count = 0

    def average(self) -> Weights:
        """Return the current mean; empty before `swa_start`."""
        return self._average

    def map_snapshots(self, change: Callable[[Weights], Weights]) -> None:
        """Apply `change` to the mean."""
        self._average = change(self._average)

    @torch.no_grad()
    def add_snapshot(self, model: nn.Module) -> None:
        """Update average <- average + (weights - average) / n for the n-th set of weights."""
        weights = dict(local_weights(model))
        self._count += 1
        if self._count == 1:
            self._average = {name: held.clone() for name, held in weights.items()}
            return
        torch._foreach_lerp_([self._average[name] for name in weights], list(weights.values()), 1.0 / self._count)

    def state_dict(self) -> dict[str, Any]:
        """Return the mean and the number of snapshots in it."""
        return super().state_dict() | {"count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        super().load_state_dict(state)
        self._average = dict(state["average"])
        self._count = state["count"]


def with_swa(schedule: Schedule, config: SwaConfig | None) -> Schedule:
    """Hold the learning rate constant from `swa_start` on, if `schedule_swa_lr` is set.

    This is the paper's constant rate (section 3.2) and the effect of Composer's `schedule_swa_lr`. With a schedule that
    decays to zero, the averaged weights would hardly differ.
    """
    if config is None or not config.schedule_swa_lr:
        return schedule
    start = config.swa_start
    return lambda progress: schedule(min(progress, start))
