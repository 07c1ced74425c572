"""Muon that orthogonalises the projections of a fused matrix one by one, with torch's AdamW for all else."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_optimizer import Muon
from torch.optim.adamw import adamw


class ProjectionMuon(Muon):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon), with `parts` projections to a matrix in each group.

    The nearest orthogonal matrix to [Q; K; V] is not made of those to Q, to K and to V: stacked, they share one set of
    directions, and a projection with small gradients gets a small step. Jordan 2024 found it better to keep them apart;
    so does this, and the value and gate of a GLU as well. Momentum works by entry and is the same either way.

    The iteration runs in bfloat16 on every device, which is also the faster one on a CPU with bfloat16 instructions.

    What is no matrix of a layer is mostly embeddings, and of a small model most of its weights: torch's fused AdamW
    goes over them once, the library's own several times, with the same arithmetic. FSDP2 has the library's, matrix by
    matrix.
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
        # The kernel counts the step itself.
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
        # The caller scales by 0.2 sqrt(max(rows, columns)) of the whole matrix; a projection has its own sides.
        rows, columns = updates[0].shape
        torch._foreach_mul_(whole, math.sqrt(max(rows // parts, columns) / max(rows, columns)))
        return whole
