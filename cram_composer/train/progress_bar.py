"""The progress bar: Composer's, counting the budget instead of batches."""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

from composer.core import State
from composer.loggers import Logger, ProgressBarLogger

from cram_composer.budget.budget import Budget
from cram_composer.config.units import format_duration

_LINE_EVERY_SECONDS = 30.0


class BudgetProgressBar(ProgressBarLogger):
    """Budget left, loss, tokens/s, learning rate and data stall; a line every 30 s where there is no terminal."""

    def __init__(self, budget: Budget, stream: TextIO = sys.stderr) -> None:
        super().__init__(stream=stream)
        self._budget = budget
        self._terminal = os.isatty(stream.fileno())
        self._last_line = time.monotonic()
        self._figures: dict[str, float] = {}

    def init(self, state: State, logger: Logger) -> None:
        """Keep a place for the bar, where there is a terminal to draw it on."""
        if self._terminal:
            super().init(state, logger)
        else:
            self.state = state

    def _log_hparams_to_console(self) -> None:
        # The run folder holds the whole configuration; the console does not need it again.
        self.hparams_already_logged_to_console = True

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Keep the latest figures."""
        self._figures.update({name: value for name, value in metrics.items() if isinstance(value, (int, float))})

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Nothing: a run that resumes is in the middle of its one epoch."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Open the bar, in percent of the budget."""
        if self.show_pbar and self._terminal and self.train_pbar is None:
            self.train_pbar = self._build_pbar(state, is_train=True)
            self.train_pbar.pbar.bar_format = "cram {percentage:3.0f}%|{bar:20}| {postfix}"
            self.train_pbar.pbar.total = 1.0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Move the bar."""
        if self.train_pbar is not None:
            self.train_pbar.pbar.n = self._budget.progress
            self.train_pbar.pbar.set_postfix_str(self._summary(state))
        elif self.show_pbar and time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS:
            self._last_line = time.monotonic()
            print(f"cram {100 * self._budget.progress:3.0f}% {self._summary(state)}", file=self.stream, flush=True)

    def eval_start(self, state: State, logger: Logger) -> None:
        """No bar of its own: evaluations are short, and their result is shown when they end."""

    def eval_end(self, state: State, logger: Logger) -> None:
        """Show the held-out loss."""
        metrics = state.eval_metrics.get(state.dataloader_label or "", {})
        if self.show_pbar and "loss" in metrics:
            loss, accuracy = float(metrics["loss"].compute()), float(metrics["accuracy"].compute())
            self._log_to_console(
                f"step {int(state.timestamp.batch)}: held-out loss {loss:.3f} nats, accuracy {100 * accuracy:.1f} %"
            )

    def _summary(self, state: State) -> str:
        figures = self._figures
        left = f"step {int(state.timestamp.batch)}"
        if self._budget.limits.seconds is not None:
            left += f", {format_duration(max(0.0, self._budget.limits.seconds - self._budget.elapsed))} left"
        return (
            f"{left}, loss {figures.get('loss/train/total', float('nan')):.3f}, "
            f"{figures.get('throughput/tokens_per_second', 0.0):,.0f} tok/s, lr {figures.get('lr', 0.0):.2e}, "
            f"stall {100 * figures.get('throughput/stall', 0.0):.1f} %"
        )
