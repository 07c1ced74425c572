"""Shampoo that is identical on every rank and resumes from a checkpoint on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import ScalableShampoo


class Shampoo(ScalableShampoo):
    """Blockwise Shampoo with grafting (Anil et al. 2020, arXiv 2002.09018).

    The iteration for inverse roots starts from a random vector. It is seeded by the step number, because the weights of
    the ranks would diverge with each rank's own random state.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step without changing the global random state."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        devices = {p.device for group in self.param_groups for p in group["params"] if p.is_cuda}
        with torch.random.fork_rng(devices=sorted(devices, key=str)):
            torch.manual_seed(self.param_groups[0].get("step", 0))
            super().step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and move the tensors that torch does not track to their parameter's device."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for holder in (state["pre_conditioner"], state["graft"]):
                for name, value in vars(holder).items():
                    setattr(holder, name, _copy_to_device(value, parameter.device))


def _copy_to_device(value: Any, device: torch.device) -> Any:
    """Copy a tensor or a list of tensors, so that later steps do not change the loaded state dict."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return [_copy_to_device(item, device) for item in value]
    return value
