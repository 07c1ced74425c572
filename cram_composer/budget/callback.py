"""The callback that runs a budget: open ledger phases, set the learning rate, stop the loop."""

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
    """Read the clock once between steps and stop the run when the budget is spent.

    All ranks use the latest reading of any rank, so that they decide identically. This must be the last callback, so
    that the work of the others counts for the step before.

    Attributes:
        signal: number of the signal that ended the run, identical on all ranks; 0 if none.
        lr: learning rate of the last parameter group in the current step.
        data_seconds: time that the current step waited for its batch.
        skips_loop: stop at the start, because an earlier attempt came to the end of the loop.
        step_started: budget elapsed at the start of the step, by this rank's own clock.
    """

    def __init__(
        self,
        budget: Budget,
        ledger: Ledger,
        schedule: Schedule,
        epochs: Callable[[], float],
        signal_received: Callable[[], int],
        on_signal: Callable[[State], None],
    ) -> None:
        self._budget = budget
        self._ledger = ledger
        self._schedule = schedule
        self._epochs = epochs
        self._signal_received = signal_received
        self._on_signal = on_signal
        self._phase_before_compile: str | None = None
        self.signal = 0
        self.skips_loop = False
        self.lr = 0.0
        self.data_seconds = 0.0
        self.step_started = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        torch._dynamo.callback.on_compile_start(self._compile_start)
        torch._dynamo.callback.on_compile_end(self._compile_end)
        self._tick(state)
        if self._budget.exhausted or self.skips_loop:  # the run was killed after its last step
            state.stop_training()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Switch to training time once the batch has arrived."""
        self.data_seconds = self._ledger.switch("train")

    def batch_start(self, state: State, logger: Logger) -> None:
        """Set the learning rate of this step."""
        factor = self._schedule(self._budget.progress)
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
                self.lr = group["lr"]

    def eval_before_all(self, state: State, logger: Logger) -> None:
        """Switch to evaluation time inside the loop."""
        if self._ledger.open_phase is not None:
            self._ledger.switch("eval")

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Switch back to training time."""
        if self._ledger.open_phase is not None:
            self._ledger.switch("train")

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Read the clock after a step and decide whether there is another."""
        self._tick(state)
        if self.signal:
            self._on_signal(state)
        if self._budget.exhausted or self.signal:
            state.stop_training()

    def fit_end(self, state: State, logger: Logger) -> None:
        """Stop the clock."""
        self.close_clock()

    def close_clock(self) -> None:
        """Stop the clock and the compile-time callbacks. May be called more than once."""
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
        self._budget.advance(elapsed, int(state.timestamp.token), int(state.timestamp.batch), self._epochs())

    def _compile_start(self, *_: object) -> None:  # torch 2.8 and later pass what is compiled
        self._phase_before_compile = self._ledger.open_phase
        if self._phase_before_compile is not None:
            self._ledger.switch("compile")

    def _compile_end(self, *_: object) -> None:
        if self._phase_before_compile is not None and self._ledger.open_phase == "compile":
            self._ledger.switch(self._phase_before_compile)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds spent per phase."""
        return {"inside": self._ledger.snapshot()}
