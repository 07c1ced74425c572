"""Masking schedule: change the share of masked tokens, and how rows are masked, with budget progress."""

from __future__ import annotations

import math
from collections.abc import Callable

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.config.schema.objective import ObjectiveConfig
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.data.masking import last_collator

# Progress in [0, 1] and the progress of the switch -> weight of the final rate.
MASK_SCHEDULES: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, switch: progress,
    "cosine": lambda progress, switch: 0.5 * (1.0 - math.cos(math.pi * progress)),
    "step": lambda progress, switch: float(progress >= switch),
}


class MaskingSchedule(Algorithm):
    """Move the masking rate from `mlm_probability` to `final_mlm_probability` over the budget.

    Ankner et al. 2023, arXiv 2305.15096. From `switch` on, rows are masked and causal as the final settings say.
    """

    def __init__(self, config: ObjectiveConfig, budget: Budget, loader: TrainLoader) -> None:
        self._start, self._end = config.rates
        self._schedule = MASK_SCHEDULES[config.mask_schedule]
        self._switch = config.switch
        self._first, self._last = loader.collator, last_collator(loader.collator, config)
        self._budget = budget
        self._loader = loader

    def match(self, event: Event, state: State) -> bool:
        """Match before every batch is fetched."""
        return event == Event.BEFORE_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the masking rate and the collator of the next batch."""
        progress = min(max(self._budget.progress, 0.0), 1.0)
        self._loader.collator = self._last if progress >= self._switch else self._first
        weight = self._schedule(progress, self._switch)
        self._loader.mlm_probability = (1.0 - weight) * self._start + weight * self._end
