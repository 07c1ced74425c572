"""Sophia-G: clipped momentum over a curvature that is sampled every few steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import SophiaH
from torch import nn

Curvature = Callable[[list[nn.Parameter]], list[torch.Tensor] | None]


class SophiaG(SophiaH):
    """x <- x - lr clip(m / max(rho h, eps), 1) (Liu et al. 2023, arXiv 2305.14342, algorithm 3), decoupled decay.

    The library's Hutchinson estimate of h differentiates the gradients, which torch's attention kernels and compiled
    layers cannot do. Here `curvature` is asked for it every `hessian_frequency` steps: it takes the parameters and
    returns one non-negative tensor for each, or None for no estimate this time. It is set once the run has a model on a
    device (algorithms/optimizer_hooks.py); without one h stays 0, and every entry of the update is clipped to 1.
    """

    def __init__(self, params: Any, *, rho: float, hessian_frequency: int, **options: Any) -> None:
        super().__init__(params, p=1.0, update_period=hessian_frequency, **options)
        self.curvature: Curvature | None = None
        self._rho = rho

    def compute_hutchinson_hessian(self, param_groups: Any, state: Any, **options: Any) -> None:  # type: ignore[override]
        """Fill in rho h: what the library calls at the steps at which it wants a new estimate."""
        parameters = [p for group in param_groups for p in group["params"] if p.grad is not None]
        estimate = self.curvature(parameters) if self.curvature is not None and parameters else None
        if estimate is None:
            # The library averages in what it finds here: the average itself leaves it as it is.
            estimate = [state[p]["hessian_moment"] / self._rho for p in parameters]
        for p, h in zip(parameters, estimate, strict=True):
            state[p]["hessian"] = self._rho * h

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step. The estimate is not kept beyond it: only its average is state."""
        loss = super().step(closure)
        for state in self.state.values():
            state.pop("hessian", None)
        return loss
