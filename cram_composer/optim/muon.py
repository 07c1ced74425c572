"""Muon that orthogonalises each projection of a fused matrix, with torch's AdamW for all other parameters."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_optimizer import Muon
from torch.optim.adamw import adamw


class ProjectionMuon(Muon):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon) for groups whose matrices hold `parts` projections each.

    Orthogonalising [Q; K; V] differs from orthogonalising Q, K and V: stacked projections share one set of directions,
    and a projection with small gradients gets a small step. Jordan 2024 found separate projections better, so they are
    separated here, as are value and gate of a GLU. Momentum is element-wise and not affected.

    The iteration runs in bfloat16 on every device, which is also faster on CPUs with bfloat16 instructions.

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

    @staticmethod
    def _orthogonalize(group: dict[str, Any], updates: list[torch.Tensor]) -> list[torch.Tensor]:
        parts = group["parts"]
        if parts == 1:
            return Muon._orthogonalize(group, updates)
        pieces = Muon._orthogonalize(group, [piece for update in updates for piece in update.chunk(parts)])
        whole = [torch.cat(pieces[at : at + parts]) for at in range(0, len(pieces), parts)]
        # The caller scales by 0.2 sqrt(max(rows, columns)) of the whole matrix; correct it to the projection's shape.
        rows, columns = updates[0].shape
        torch._foreach_mul_(whole, math.sqrt(max(rows // parts, columns) / max(rows, columns)))
        return whole
