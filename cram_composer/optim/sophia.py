"""Sophia-G: clipped momentum divided by a curvature that is estimated every few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import SophiaH
from torch import nn

Curvature = Callable[[list[nn.Parameter]], list[torch.Tensor] | None]


class SophiaG(SophiaH):
    """Sophia with a given curvature and decoupled weight decay (Liu et al. 2023, arXiv 2305.14342, algorithm 3).

    The update is x <- x - lr clip(m / max(rho h, eps), 1).

    The library's Hutchinson estimate of h differentiates the gradients, which torch's attention kernels and compiled
    layers do not support. Here `curvature` provides it every `hessian_frequency` steps: it takes the parameters and
    returns one non-negative tensor for each, or None to skip the estimate. It is set once the run's model is on a
    device (algorithms/optimizer_hooks.py); without it h stays 0, and every entry of the update is clipped to 1.
    """

    def __init__(self, params: Any, *, rho: float, hessian_frequency: int, **options: Any) -> None:
        super().__init__(params, p=1.0, update_period=hessian_frequency, **options)
        self.curvature: Curvature | None = None
        self._rho = rho

    def compute_hutchinson_hessian(self, param_groups: Any, state: Any, **options: Any) -> None:  # type: ignore[override]
        """Store rho h; the library calls this at the steps that need a new estimate."""
        parameters = [p for group in param_groups for p in group["params"] if p.grad is not None]
        estimate = self.curvature(parameters) if self.curvature is not None and parameters else None
        if estimate is None:
            # The library averages this value in; passing the average leaves it unchanged.
            estimate = [state[p]["hessian_moment"] / self._rho for p in parameters]
        for p, h in zip(parameters, estimate, strict=True):
            state[p]["hessian"] = self._rho * h

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take a step and discard the estimate; only its average is state."""
        loss = super().step(closure)
        for state in self.state.values():
            state.pop("hessian", None)
        return loss
