"""Skip optimizer steps whose loss or gradients are not finite."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from composer.core import Algorithm, Event, Precision, State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.errors import CramError
from cram_composer.optim.parameters import optimized_gradients

log = logging.getLogger(__name__)

_GRADIENT = "a gradient"


class NonFiniteGuard(Algorithm):
    """Check loss and gradients between the backward pass and the optimizer step.

    Policies: `skip-step` drops the gradients of the step. `rollback` also restores weights and optimizer from the last
    checkpoint, but continues in the data, so that the same batch is not repeated. `stop` ends the run. Gradients that
    overflow in fp16 are left to the loss scaler, which skips the step. More than `limit` bad steps in a row end the run
    in any case. All ranks decide identically.

    Args:
        policy: one of the above.
        limit: largest number of consecutive bad steps.
        rollback: restores the last checkpoint; returns False if there is none.
        gradients: returns this rank's part of the gradients of a step; by default the `grad` of all optimized
            parameters.
        complete: `gradients` returns all gradients of the model, not only this rank's part.
        optimizer_skips: the optimizer itself skips steps whose gradient norm is not finite and calls
            `step_was_skipped`. A loss that is not finite then makes its gradients not finite too.

    Attributes:
        norm: norm of all gradients of the current step, a scalar; None if this rank has not computed it.
        skipped: number of steps that were not applied.
    """

    def __init__(
        self,
        policy: str,
        limit: int,
        rollback: Callable[[State, Logger], bool],
        gradients: Callable[[State], list[torch.Tensor]] | None = None,
        complete: bool = True,
        optimizer_skips: bool = False,
    ) -> None:
        self._policy = policy
        self._limit = limit
        self._rollback = rollback
        self._gradients = gradients or (lambda state: optimized_gradients(state.optimizers))
        self._complete = complete
        self._optimizer_skips = optimizer_skips
        self._run: tuple[State, Logger] | None = None
        self._in_a_row = 0
        self._last_bad = -1  # number of the latest bad step
        self._losses: list[torch.Tensor] = []  # of the step's microbatches, on the device
        self.norm: torch.Tensor | None = None
        self.skipped = 0

    def match(self, event: Event, state: State) -> bool:
        """Match after the loss of every microbatch, and after all gradients of a step are computed."""
        if event == Event.BEFORE_TRAIN_BATCH:
            return self._optimizer_skips  # the only event after the optimizer step of the last batch
        return event in (Event.AFTER_LOSS, Event.AFTER_TRAIN_BATCH)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Record a loss; drop the step if its loss or gradients are not finite."""
        if event == Event.BEFORE_TRAIN_BATCH:
            self._losses = []
            return
        if event == Event.AFTER_LOSS:
            losses = cast(dict[str, torch.Tensor], state.loss)
            loss = losses["total"]
            self._losses.append(loss.detach())
            if self._optimizer_skips:
                losses["total"] = loss * (loss.detach() * 0.0 + 1.0)  # times one, or times NaN
            return
        self._run = state, logger
        if self._optimizer_skips:
            return
        cause = self._cause(state)
        if cause is None:
            return
        if cause == _GRADIENT and state.precision == Precision.AMP_FP16:
            self._count_overflow(state)
            return
        # Optimizers skip parameters without a gradient, including their weight decay.
        for parameter in state.model.parameters():
            parameter.grad = None
        self._handle_bad_step(cause, state, logger)

    def step_was_skipped(self) -> None:
        """Handle a step that the optimizer skipped because of its gradients. Called on all ranks."""
        assert self._run is not None
        self._handle_bad_step(self._cause(self._run[0]) or _GRADIENT, *self._run)

    def _count_overflow(self, state: State) -> None:
        """Count a step that fp16's loss scaler skips: it overflows by design, to find the largest scale that works."""
        step = self._count(state)
        if self._in_a_row > self._limit:
            raise CramError(
                f"step {step}: gradients overflowed in fp16 for {self._in_a_row} steps in a row, more than "
                f"train.max_nonfinite = {self._limit}; none was applied; lower optimizer.lr, or set train.precision to "
                "bf16 or fp32"
            )

    def _count(self, state: State) -> int:
        """Count a bad step and return its number."""
        step = int(state.timestamp.batch)
        # Compare step numbers: under SAM, a good pass may precede a bad one in the same step.
        self._in_a_row = self._in_a_row + 1 if self._last_bad == step - 1 else 1
        self._last_bad = step
        self.skipped += 1
        return step

    def _handle_bad_step(self, cause: str, state: State, logger: Logger) -> None:
        step = self._count(state)
        if self._policy == "stop":
            raise CramError(
                f"step {step}: {cause} is not finite and train.on_nonfinite is stop; the step was not applied; "
                "lower optimizer.lr, or set train.precision=fp32 or train.on_nonfinite=skip-step"
            )
        if self._in_a_row > self._limit:
            raise CramError(
                f"step {step}: {cause} was not finite for {self._in_a_row} steps in a row, more than "
                f"train.max_nonfinite = {self._limit}; none was applied; lower optimizer.lr or set train.precision=fp32"
            )
        action = "skipped the step"
        if self._policy == "rollback":
            action = (
                "restored the last checkpoint"
                if self._rollback(state, logger)
                else "skipped the step, no checkpoint to restore yet"
            )
        log.warning("step %d: %s is not finite: %s", step, cause, action)

    def _cause(self, state: State) -> str | None:
        """Return "the loss" or _GRADIENT if it is not finite on any rank, else None. Collective."""
        # A sum is not finite if a term is not, so one number of each kind is enough.
        zero = state.device.tensor_to_device(torch.zeros(1)).squeeze()
        loss = torch.stack(self._losses).sum().float() if self._losses else zero
        self._losses = []
        gradients = [] if self._optimizer_skips else self._gradients(state)
        norm = torch.nn.utils.get_total_norm(gradients) if gradients else None
        self.norm = norm if self._complete else None
        bad = torch.stack((loss, zero if norm is None else norm.float())).isfinite().logical_not().float()
        if dist.get_world_size() > 1:
            dist.all_reduce(bad, reduce_operation="MAX")
        loss_is_bad, gradient_is_bad = bad.bool().tolist()  # the only wait of a step for the device
        if loss_is_bad:
            return "the loss"
        return _GRADIENT if gradient_is_bad else None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of skipped steps."""
        return super().state_dict() | {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the number of skipped steps."""
        self.skipped = max(self.skipped, state["skipped"])
