"""Non-finite losses and gradients are never applied."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from composer.core import Algorithm, Event, Precision, State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.errors import CramError
from cram_composer.optim.parameters import optimized_gradients

log = logging.getLogger(__name__)


class NonFiniteGuard(Algorithm):
    """Look at the loss and the gradients between the backward pass and the optimizer step.

    Policies: `skip-step` drops the gradients of the step, `rollback` also goes back to the last checkpoint's weights
    and optimizer (the data goes on, so that the same batch does not come again), `stop` ends the run. More than
    `limit` in a row end the run whatever the policy. All ranks act alike.

    Put it last among the algorithms: Composer runs them in reverse after a step, and clipping must come after this.

    Args:
        policy: one of the above.
        limit: bad steps in a row.
        rollback: goes back; False when there is nothing to go back to.
        gradients: what this rank holds of the gradients of a step; the `grad` of all that optimizers step without it.
        whole: those are all gradients of the model, and not this rank's part of them.
        skipped_elsewhere: what takes the step leaves it out by itself if the norm of its gradients is not finite, and
            calls `step_was_skipped`. A loss that is not finite is then multiplied so that its gradients are not either.

    Attributes:
        norm: of all gradients of the step under way, a scalar; None where this rank has not computed it.
        skipped: steps that were not applied.
    """

    def __init__(
        self,
        policy: str,
        limit: int,
        rollback: Callable[[State, Logger], bool],
        gradients: Callable[[State], list[torch.Tensor]] | None = None,
        whole: bool = True,
        skipped_elsewhere: bool = False,
    ) -> None:
        self._policy = policy
        self._limit = limit
        self._rollback = rollback
        self._gradients = gradients or (lambda state: optimized_gradients(state.optimizers))
        self._whole = whole
        self._skipped_elsewhere = skipped_elsewhere
        self._run: tuple[State, Logger] | None = None
        self._in_a_row = 0
        self._last_bad = -1  # the step of the latest
        self._losses: list[torch.Tensor] = []  # of the microbatches of the step, on the device
        self.norm: torch.Tensor | None = None
        self.skipped = 0

    def match(self, event: Event, state: State) -> bool:
        """After the loss of every microbatch, and when all gradients of a step are there."""
        if event == Event.BEFORE_TRAIN_BATCH:
            return self._skipped_elsewhere  # where nothing else says that the last step is over
        return event in (Event.AFTER_LOSS, Event.AFTER_TRAIN_BATCH)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Take note of a loss; drop the step if anything in it is not finite."""
        if event == Event.BEFORE_TRAIN_BATCH:
            self._losses = []
            return
        if event == Event.AFTER_LOSS:
            losses = cast(dict[str, torch.Tensor], state.loss)
            loss = losses["total"]
            self._losses.append(loss.detach())
            if self._skipped_elsewhere:
                losses["total"] = loss * (loss.detach() * 0.0 + 1.0)  # times one, or times NaN
            return
        self._run = state, logger
        if self._skipped_elsewhere:
            return
        cause = self._cause(state)
        if cause is None:
            return
        # A parameter without a gradient is one that no optimizer touches, weight decay included.
        for parameter in state.model.parameters():
            parameter.grad = None
        self._was_bad(cause, state, logger)

    def step_was_skipped(self) -> None:
        """Gradients were not finite, and the step was left out. All ranks call it."""
        assert self._run is not None
        self._was_bad(self._cause(self._run[0]) or "a gradient", *self._run)

    def _was_bad(self, cause: str, state: State, logger: Logger) -> None:
        step = int(state.timestamp.batch)
        # By the numbers of steps: under SAM, a good pass comes before a bad one of the same step.
        self._in_a_row = self._in_a_row + 1 if self._last_bad == step - 1 else 1
        self._last_bad = step
        self.skipped += 1
        if self._policy == "stop":
            raise CramError(
                f"step {step}: {cause} is not finite, and train.on_nonfinite is 'stop'; the step was not applied"
            )
        if self._in_a_row > self._limit:
            raise CramError(
                f"step {step}: {cause} was not finite for {self._in_a_row} steps in a row (train.max_nonfinite); "
                "none was applied: try a lower optimizer.lr or precision=fp32"
            )
        done = "the step was skipped"
        if self._policy == "rollback":
            done = "went back to the last checkpoint" if self._rollback(state, logger) else "skipped: no checkpoint yet"
        log.warning("step %d: %s is not finite: %s", step, cause, done)

    def _cause(self, state: State) -> str | None:
        """What is not finite on any rank: 'the loss', 'a gradient' or None."""
        # Sums are not finite if anything in them is not; one number of each kind is all that is waited for.
        loss_is_bad = bool(self._losses) and not math.isfinite(torch.stack(self._losses).sum())
        self._losses = []
        gradients = [] if self._skipped_elsewhere else self._gradients(state)
        # Under fp16 the loss scaler overflows on purpose and skips those steps itself.
        look_at_gradients = state.precision != Precision.AMP_FP16
        norm = torch.nn.utils.get_total_norm(gradients) if look_at_gradients and gradients else None
        self.norm = norm if self._whole else None
        gradient_is_bad = norm is not None and not math.isfinite(norm)
        if dist.get_world_size() > 1:
            flags = torch.tensor([float(loss_is_bad), float(gradient_is_bad)])
            flags = state.device.tensor_to_device(flags)
            dist.all_reduce(flags, reduce_operation="MAX")
            loss_is_bad, gradient_is_bad = flags.bool().tolist()
        if loss_is_bad:
            return "the loss"
        return "a gradient" if gradient_is_bad else None

    def state_dict(self) -> dict[str, Any]:
        """Steps skipped so far."""
        return super().state_dict() | {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from a checkpoint."""
        self.skipped = max(self.skipped, state["skipped"])
