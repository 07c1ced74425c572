"""Data curriculum: change the proportions of the data streams with budget progress."""

from __future__ import annotations

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.data.loading.mixture import Curriculum
from cram_composer.data.loading.stream import TrainLoader


class DataCurriculum(Algorithm):
    """Sample each step's rows from the streams in the proportions of `curriculum` at the current progress."""

    def __init__(self, curriculum: Curriculum, budget: Budget, loader: TrainLoader) -> None:
        self._curriculum = curriculum
        self._budget = budget
        self._loader = loader

    def match(self, event: Event, state: State) -> bool:
        """Match before every batch is fetched."""
        return event == Event.BEFORE_DATALOADER

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the proportions of the next batch."""
        self._loader.stream.plan.shares = self._curriculum.shares(self._budget.progress)
