"""The callback that runs a budget: it opens and closes ledger phases, sets the learning rate, and stops the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.budget.budget import Budget
from cram_composer.budget.ledger import Ledger
from cram_composer.budget.schedules import Schedule


class BudgetCallback(Callback):
    """One tick between steps: all ranks take the latest reading of any of their clocks, so that all decide alike.

    Put it last among the callbacks: what the others do after a step is then over when the next step's time is read.
    """

    def __init__(
        self,
        budget: Budget,
        ledger: Ledger,
        schedule: Schedule,
        signal_received: Callable[[], int],
        on_signal: Callable[[State], None],
    ) -> None:
        self._budget = budget
        self._ledger = ledger
        self._schedule = schedule
        self._signal_received = signal_received
        self._on_signal = on_signal
        self._compile_before: str | None = None
        self.signal = 0  # the signal that ended the run, agreed on all ranks
        self.lr = 0.0
        self.data_seconds = 0.0
        self.step_started = 0.0  # budget elapsed when the step began, on this rank's own clock

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        torch._dynamo.callback.on_compile_start(self._compile_start)
        torch._dynamo.callback.on_compile_end(self._compile_end)
        self._tick(state)
        if self._budget.exhausted:  # a run that was killed after its last step
            state.stop_training()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """The batch is there: from now on it is training time."""
        self.data_seconds = self._ledger.switch("train")

    def batch_start(self, state: State, logger: Logger) -> None:
        """Set the learning rate of this step."""
        factor = self._schedule(self._budget.progress)
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
                self.lr = group["lr"]

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Evaluation in the loop counts as such."""
        if self._ledger.open_phase is not None:
            self._ledger.switch("eval")

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Back to training."""
        if self._ledger.open_phase is not None:
            self._ledger.switch("train")

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """The step is over: read the clock and decide whether there is another."""
        self._tick(state)
        if self.signal:
            self._on_signal(state)
        if self._budget.exhausted or self.signal:
            state.stop_training()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Stop the clock."""
        self.close_clock()

    def close_clock(self) -> None:
        """Stop the clock and stop listening to the compiler; may be called again."""
        self._ledger.stop()
        handler = torch._dynamo.callback.callback_handler
        if self._compile_start in handler.start_callbacks:
            handler.remove_start_callback(self._compile_start)
            handler.remove_end_callback(self._compile_end)

    def _tick(self, state: State) -> None:
        self._ledger.switch("data")
        self.step_started = self._ledger.elapsed()
        elapsed, self.signal = self.step_started, self._signal_received()
        if dist.get_world_size() > 1:
            reading = torch.tensor([elapsed, float(self.signal)], dtype=torch.float64)
            reading = state.device.tensor_to_device(reading)
            dist.all_reduce(reading, reduce_operation="MAX")
            elapsed, signal = reading.tolist()
            self.signal = int(signal)
        self._budget.advance(elapsed, int(state.timestamp.token), int(state.timestamp.batch))

    def _compile_start(self) -> None:
        self._compile_before = self._ledger.open_phase
        if self._compile_before is not None:
            self._ledger.switch("compile")

    def _compile_end(self) -> None:
        if self._compile_before is not None and self._ledger.open_phase == "compile":
            self._ledger.switch(self._compile_before)

    def state_dict(self) -> dict[str, Any]:
        """What was spent, phase by phase."""
        return {"inside": self._ledger.snapshot()}
