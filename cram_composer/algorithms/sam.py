"""Sharpness-aware minimization: step along the gradient at the worst nearby point."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch.optim import Optimizer

from cram_composer.config.schema.algorithms import SamConfig

Closure = Callable[..., Any]


class SAM(Algorithm):
    """Sharpness-aware minimization (Foret et al. 2020, arXiv 2010.01412, algorithm 1), with Composer's parameter names.

    In every `interval`-th step, the optimizer steps at w along the gradient at w + rho g / (|g| + epsilon), where g is
    the gradient at w over this device's rows (the paper's m-sharpness). The optimizer keeps its class, state and name
    in checkpoints; only its `step` changes and calls Composer's closure twice.

    Composer's own SAM wraps the optimizer after a checkpoint is loaded, so a run cannot resume. It subtracts the
    perturbation instead of restoring w, so devices diverge by rounding. When the non-finite guard drops the gradients,
    it fails or leaves the weights at the worst point.
    """

    def __init__(self, config: SamConfig) -> None:
        self._config = config
        self._origin: list[tuple[torch.nn.Parameter, torch.Tensor]] = []  # weights to restore after the second pass

    def match(self, event: Event, state: State) -> bool:
        """Match before a checkpoint is loaded and the loss scaler is chosen."""
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Replace the step of every optimizer by a step of two passes."""
        for optimizer in state.optimizers:
            self._sharpen(optimizer, state)

    def _sharpen(self, optimizer: Optimizer, state: State) -> None:
        descend = optimizer.step

        def step(optimizer: Optimizer, closure: Closure | None = None) -> Any:
            if closure is None:
                return descend()
            if (int(state.timestamp.batch) + 1) % self._config.interval == 0:
                loss = self._gradient_nearby(optimizer, closure)
            else:
                loss = closure()
            if loss is not None:  # None: the loss scaler found an overflow on some device
                descend()
            return loss

        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]
        optimizer._step_supports_amp_closure = True  # type: ignore[attr-defined]  # Composer passes closures under fp16

    def _gradient_nearby(self, optimizer: Optimizer, closure: Closure) -> Any:
        """Compute the gradient at the worst nearby point and restore the weights."""
        loss = closure(ddp_sync=False)
        moved = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if loss is None or not moved:  # overflow, or a step dropped by the guard
            return loss
        with torch.no_grad():
            norm = torch.nn.utils.get_total_norm([p.grad for p in moved])
            scale = self._config.rho / (norm + self._config.epsilon)
            self._origin = [(p, p.clone()) for p in moved]
            for p in moved:
                p.add_(p.grad * scale)
        try:
            loss_nearby = closure(loss_dict={})  # the reported loss stays that of the first pass
        finally:
            self._restore()
        return None if loss_nearby is None else loss

    @torch.no_grad()
    def _restore(self) -> None:
        for p, weights in self._origin:
            p.copy_(weights)
        self._origin = []

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Drop the saved weights after a rollback within a step."""
        self._origin = []
