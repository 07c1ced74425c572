"""Masking-rate schedule: change the share of masked tokens with budget progress."""

from __future__ import annotations

import math
from collections.abc import Callable

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.config.schema.objective import Objective
from cram_composer.data.loading.stream import TrainLoader

# Progress in [0, 1] -> weight of the final rate.
MASK_SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: 0.5 * (1.0 - math.cos(math.pi * progress)),
    "step": lambda progress: float(progress >= 0.5),
}


class MaskingSchedule(Algorithm):
    """Move the masking rate from `mlm_probability` to `final_mlm_probability` over the budget.

    Ankner et al. 2023, arXiv 2305.15096.
    """

    def __init__(self, config: Objective, budget: Budget, loader: TrainLoader) -> None:
        self._start = config.mlm_probability
        self._end = config.mlm_probability if config.final_mlm_probability is None else config.final_mlm_probability
        self._schedule = MASK_SCHEDULES[config.mask_schedule]
        self._budget = budget
        self._loader = loader

    def match(self, event: Event, state: State) -> bool:
        """Match before every batch is fetched."""
        return event == Event.BEFORE_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the masking rate of the next batch."""
        weight = self._schedule(min(max(self._budget.progress, 0.0), 1.0))
        self._loader.mlm_probability = (1.0 - weight) * self._start + weight * self._end
