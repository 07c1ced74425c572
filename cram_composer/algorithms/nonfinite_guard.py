"""Non-finite losses and gradients are never applied."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from composer.core import Algorithm, Event, Precision, State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.errors import CramError

log = logging.getLogger(__name__)


class NonFiniteGuard(Algorithm):
    """Look at the loss and the gradients between the backward pass and the optimizer step.

    Policies: `skip-step` drops the gradients of the step, `rollback` also goes back to the last checkpoint's weights
    and optimizer (the data goes on, so that the same batch does not come again), `stop` ends the run. More than
    `limit` in a row end the run whatever the policy. All ranks act alike.
    """

    def __init__(self, policy: str, limit: int, rollback: Callable[[State], bool]) -> None:
        self._policy = policy
        self._limit = limit
        self._rollback = rollback
        self._in_a_row = 0
        self.skipped = 0

    def match(self, event: Event, state: State) -> bool:
        """After all gradients of a step are there."""
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Drop the step if anything in it is not finite."""
        cause = _non_finite(state)
        if cause is None:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self.skipped += 1
        # A parameter without a gradient is one that no optimizer touches, weight decay included.
        for parameter in state.model.parameters():
            parameter.grad = None
        step = int(state.timestamp.batch)
        if self._policy == "stop":
            raise CramError(
                f"step {step}: {cause} is not finite, and train.nonfinite is 'stop'; the step was not applied"
            )
        if self._in_a_row > self._limit:
            raise CramError(
                f"step {step}: {cause} was not finite for {self._in_a_row} steps in a row (train.max_nonfinite); "
                "none was applied: try a lower optimizer.lr or precision=fp32"
            )
        done = "the step was skipped"
        if self._policy == "rollback":
            done = "went back to the last checkpoint" if self._rollback(state) else "skipped: no checkpoint yet"
        log.warning("step %d: %s is not finite: %s", step, cause, done)


def _non_finite(state: State) -> str | None:
    """What is not finite on any rank: 'the loss', 'a gradient' or None."""
    loss_bad = not math.isfinite(float(state.loss.detach() if isinstance(state.loss, torch.Tensor) else 0.0))
    gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
    # Under fp16 the loss scaler overflows on purpose and skips those steps itself.
    look_at_gradients = state.precision != Precision.AMP_FP16
    norm = torch.nn.utils.get_total_norm(gradients) if look_at_gradients and gradients else torch.zeros(())
    flags = torch.tensor([float(loss_bad), float(not bool(torch.isfinite(norm)))])
    flags = state.device.tensor_to_device(flags)
    dist.all_reduce(flags, reduce_operation="MAX")
    if flags[0]:
        return "the loss"
    return "a gradient" if flags[1] else None
