"""Early stop of a run whose loss is too high."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.config.schema.run import EarlyStopConfig


class EarlyStop(Callback):
    """At progress `at`, end the run if the mean of the recent training losses is above `loss_above` nats."""

    def __init__(self, config: EarlyStopConfig, budget: Budget, recent_losses: Callable[[], list[float]]) -> None:
        self._config = config
        self._budget = budget
        self._recent_losses = recent_losses
        self._checked = False
        self.reason: str | None = None

    def batch_end(self, state: State, logger: Logger) -> None:
        """Check once, at the configured progress. The losses are all-reduced, so all ranks agree."""
        if self._checked or self._budget.progress < self._config.at:
            return
        losses = self._recent_losses()
        if not losses:
            return
        self._checked = True
        mean = sum(losses) / len(losses)
        if mean > self._config.loss_above:
            self.reason = (
                f"training loss {mean:.3f} at {100 * self._budget.progress:.0f} % of the budget is above "
                f"train.early_stop.loss_above = {self._config.loss_above}"
            )
            state.stop_training()

    def state_dict(self) -> dict[str, Any]:
        """Return whether the check is done, so that a resumed run is not checked again."""
        return {"looked": self._checked}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self._checked = state["looked"]
