"""Early stop of a run whose loss is too high or no longer falls."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from cram_composer.budget.budget import Budget
from cram_composer.config.schema.run import EarlyStopConfig

_FEWEST_LOSSES = 10  # a cold compilation can take the first tenth of a short budget


class EarlyStop(Callback):
    """End the run if the training loss is too high at progress `at`, or the held-out loss stops falling.

    All ranks see the same losses, which are reduced over ranks, and stop at the same step.

    Attributes:
        reason: why the run was stopped; None if it was not.
    """

    def __init__(self, config: EarlyStopConfig, budget: Budget, recent_losses: Callable[[], list[float]]) -> None:
        self._config = config
        self._budget = budget
        self._recent_losses = recent_losses
        self._checked = config.loss_above is None
        self._best = math.inf
        self._without_improvement = 0  # evaluations
        self.reason: str | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """End a run that was stopped, but killed before it finished."""
        if self.reason is not None:
            state.stop_training()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Check the mean of the recent training losses once, at the configured progress."""
        if self._checked or self._budget.progress < self._config.at:
            return
        losses = self._recent_losses()
        if len(losses) < _FEWEST_LOSSES:
            return
        self._checked = True
        mean = sum(losses) / len(losses)
        if self._config.loss_above is not None and mean > self._config.loss_above:
            self._stop(
                state,
                f"training loss {mean:.3f} at {100 * self._budget.progress:.0f} % of the budget is above "
                f"train.early_stop.loss_above = {self._config.loss_above}",
            )

    def eval_end(self, state: State, logger: Logger) -> None:
        """Count evaluations during training whose loss is not at least `min_delta` below the lowest."""
        patience = self._config.patience
        if patience is None or state.dataloader_label != "eval":
            return
        loss = float(state.eval_metrics["eval"]["loss"].compute())
        if loss < self._best - self._config.min_delta:
            self._best, self._without_improvement = loss, 0
            return
        self._without_improvement += 1
        if self._without_improvement >= patience:
            self._stop(
                state,
                f"held-out loss {loss:.3f} at {100 * self._budget.progress:.0f} % of the budget: no improvement on "
                f"{self._best:.3f} in train.early_stop.patience = {patience} evaluations",
            )

    def _stop(self, state: State, reason: str) -> None:
        self.reason = reason
        state.stop_training()

    def state_dict(self) -> dict[str, Any]:
        """Return what has been checked so far, so that a resumed run continues from there."""
        return {
            "looked": self._checked,
            "best": self._best,
            "without_improvement": self._without_improvement,
            "reason": self.reason,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore from a checkpoint."""
        self._checked = state["looked"]
        self._best = state["best"]
        self._without_improvement = state["without_improvement"]
        self.reason = state["reason"]
