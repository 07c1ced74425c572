"""Optimizers by name. To add one: a function of the settings and the model, and a line in `OPTIMIZERS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from cram_composer.errors import CramError
from cram_composer.optim.groups import parameter_groups

if TYPE_CHECKING:
    from cram_composer.config.optimizer_schema import OptimizerConfig


def adamw(settings: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), torch's fused kernel: one pass over all parameters."""
    beta1, beta2 = settings.betas
    return torch.optim.AdamW(
        parameter_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=(beta1, beta2),
        eps=settings.eps,
        fused=True,
    )


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, nn.Module], torch.optim.Optimizer]] = {"adamw": adamw}


def build_optimizer(settings: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer `settings.name` over the parameter groups of `model`.

    Raises:
        CramError: there is no optimizer of that name.
    """
    if settings.name not in OPTIMIZERS:
        nearest = difflib.get_close_matches(settings.name, OPTIMIZERS, n=1, cutoff=0.0)[0]
        raise CramError(f"optimizer.name: there is no '{settings.name}'; did you mean '{nearest}'?")
    return OPTIMIZERS[settings.name](settings, model)
