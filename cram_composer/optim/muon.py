"""Muon that orthogonalises each projection of a fused matrix, with torch's AdamW for all other parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_optimizer import Muon
from pytorch_optimizer.optimizer.muon.base import get_adjusted_lr
from pytorch_optimizer.optimizer.utils.matrix import zero_power_via_newton_schulz_5
from torch.optim.adamw import adamw

_EPS = 1e-7  # smallest norm of a gradient to divide by


class ProjectionMuon(Muon):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for groups whose matrices hold `parts` projections each.

    Orthogonalising [Q; K; V] differs from orthogonalising Q, K and V: stacked projections share one set of directions,
    and a projection with small gradients gets a small step. Jordan 2024 found separate projections better, so they are
    separated here, as are value and gate of a GLU. Momentum is element-wise and not affected.

    The iteration runs in bfloat16, which is also faster on CPUs with bfloat16 instructions, or in float16 on a GPU
    without them. Projections of one shape and group are one batch.

    All other parameters, mostly embeddings, are the majority of the weights of a small model. torch's fused AdamW reads
    them once, the library's AdamW several times, with the same arithmetic. Under FSDP2 the library's AdamW runs.
    """

    def _step_foreach(
        self,
        group: dict[str, Any],
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        state_dict: dict[str, list[torch.Tensor]],
        bias_correction1: float | torch.Tensor,
        bias_correction2: float | torch.Tensor,
    ) -> None:
        if group["use_muon"]:
            super()._step_foreach(group, params, grads, state_dict, bias_correction1, bias_correction2)
            return
        beta1, beta2 = group["betas"]
        # The kernel increments the step itself.
        steps = torch.full((len(params),), group["step"] - 1.0, device=params[0].device)
        adamw(
            params,
            grads,
            state_dict["exp_avg"],
            state_dict["exp_avg_sq"],
            max_exp_avg_sqs=[],
            state_steps=list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _step_muon_foreach(
        self,
        group: dict[str, Any],
        params: list[torch.Tensor],
        grads: list[torch.Tensor],
        state_dict: dict[str, list[torch.Tensor]],
        bias_correction2: float | torch.Tensor,
    ) -> None:
        buffers = state_dict["momentum_buffer"]
        torch._foreach_lerp_(buffers, grads, weight=1.0 - group["momentum"])
        torch._foreach_lerp_(grads, buffers, weight=group["momentum"])  # Nesterov's
        parts = group["parts"]
        pieces = [piece for param in params for piece in param.chunk(parts)]
        updates = _orthogonal(group, [piece for grad in grads for piece in grad.chunk(parts)])
        lr = float(get_adjusted_lr(group["lr"], pieces[0].shape, use_adjusted_lr=True))
        torch._foreach_add_(pieces, updates, alpha=-lr)

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[torch.Tensor]) -> list[torch.Tensor]:
        """Orthogonalise the projections of one matrix, for FSDP2."""
        (update,) = updates
        parts = group["parts"]
        if parts == 1:
            return [_iterate(group, update)]
        whole = torch.cat([_iterate(group, piece) for piece in update.chunk(parts)])
        # The caller scales by 0.2 sqrt(max(rows, columns)) of the whole matrix; correct it to the projection's shape.
        rows, columns = update.shape
        return [whole.mul_(math.sqrt(max(rows // parts, columns) / max(rows, columns)))]


def _orthogonal(group: dict[str, Any], matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Orthogonalise matrices of one shape, some of them transposed, in one batch; return contiguous fp32 matrices.

    One batch and results of the dtype and layout of the weights keep the number of kernels small.
    """
    turned = [matrix.shape[0] > matrix.shape[1] for matrix in matrices]
    stacked = torch.stack([matrix.mT if turn else matrix for matrix, turn in zip(matrices, turned, strict=True)])
    result = _iterate(group, stacked).float()
    transposed = result.mT.contiguous() if any(turned) else result
    return [(transposed if turn else result)[place] for place, turn in enumerate(turned)]


def _iterate(group: dict[str, Any], matrices: torch.Tensor) -> torch.Tensor:
    """Iterate on one matrix or a batch of them, in bfloat16, or in float16 on a GPU without bfloat16."""
    dtype = torch.bfloat16
    if matrices.is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        dtype = torch.float16
        # The library casts first and divides by the norm then; small gradients are zero in float16.
        matrices = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp_min(_EPS)
    steps, coefficients = group["ns_steps"], group["ns_coeffs"]
    return zero_power_via_newton_schulz_5(matrices, steps, _EPS, weights=coefficients, dtype=dtype)
