"""Shampoo that is the same on every rank and goes on from a checkpoint on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_optimizer import ScalableShampoo


class Shampoo(ScalableShampoo):
    """Blockwise Shampoo with grafting (Anil et al. 2020, arXiv 2002.09018).

    Its inverse roots start from a random vector, drawn here from the step's number: with each rank's own draws, the
    weights of the ranks would drift apart.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the random numbers of everything else are left as they are."""
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
        """Load a state; what torch does not know how to move goes to its parameter's device too."""
        super().load_state_dict(state_dict)
        for parameter, state in self.state.items():
            for holder in (state["pre_conditioner"], state["graft"]):
                for name, value in vars(holder).items():
                    setattr(holder, name, _moved(value, parameter.device))


def _moved(value: Any, device: torch.device) -> Any:
    """A copy of tensors and lists of them, so that the loaded state dict is not changed by later steps."""
    if isinstance(value, torch.Tensor):
        return value.to(device, copy=True)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return [_moved(item, device) for item in value]
    return value
