"""Masking-rate schedule: the share of masked tokens moves in a line with budget progress."""

from __future__ import annotations

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.budget.schedules import ramp
from cram_composer.config.objective_schema import ObjectiveConfig
from cram_composer.data.stream import TrainLoader


class MaskingSchedule(Algorithm):
    """From `mlm_probability` to `final_mlm_probability` over the budget (Ankner et al. 2023, arXiv 2305.15096)."""

    def __init__(self, config: ObjectiveConfig, budget: Budget, loader: TrainLoader) -> None:
        self._start = config.mlm_probability
        self._end = config.mlm_probability if config.final_mlm_probability is None else config.final_mlm_probability
        self._budget = budget
        self._loader = loader

    def match(self, event: Event, state: State) -> bool:
        """Before every batch is fetched."""
        return event == Event.BEFORE_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the masking rate of the next batch."""
        self._loader.mlm_probability = ramp(self._budget.progress, self._start, self._end, 1.0)
