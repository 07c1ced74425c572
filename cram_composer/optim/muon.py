"""Muon that orthogonalises the projections of a fused matrix one by one."""

from __future__ import annotations

import math
from typing import Any

import torch
from pytorch_optimizer import Muon


class ProjectionMuon(Muon):
    """Muon (Jordan 2024, kellerjordan.github.io/posts/muon), with `parts` projections to a matrix in each group.

    The nearest orthogonal matrix to [Q; K; V] is not made of those to Q, to K and to V: stacked, they share one set of
    directions, and a projection with small gradients gets a small step. Jordan 2024 found it better to keep them apart;
    so does this, and the value and gate of a GLU as well. Momentum works by entry and is the same either way.

    The iteration runs in bfloat16 on every device, which is also the faster one on a CPU with bfloat16 instructions.
    """

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
