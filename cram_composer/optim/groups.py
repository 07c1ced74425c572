"""Which parameters are decayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, weight_decay: float, no_decay: Sequence[str] = ("bias", "norm")
) -> list[dict[str, Any]]:
    """Two optimizer groups over the trainable parameters: matrices with `weight_decay`, the rest with 0.

    A parameter is decayed if it has two dimensions or more and no part of `no_decay` is in its name, whatever the
    case. Embeddings are matrices and are decayed (with the decoder tied to them, once), as by the cramming code, whose
    exceptions are the names with "bias" and "norm". The scalar of the scaled sinusoids is decayed there and not here.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or any(part in name.lower() for part in no_decay)
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
