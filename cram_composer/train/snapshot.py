"""Copies of a state in host memory, which a thread writes to the disk while training changes the original."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils._pytree import tree_map


def snapshot(state: dict[str, Any]) -> dict[str, Any]:
    """Copy a state dict of any depth to host memory, with the sharing and strides of its tensors.

    Copies of device tensors use pinned memory, which torch keeps for the next snapshot: pinning is slow, and copies to
    pageable memory run at a fraction of the bus's rate.

    Raises:
        MemoryError, RuntimeError: the host has no memory for the copy.
    """
    copies: dict[int, torch.Tensor] = {}  # of storages, by their identity
    on_device = False

    def copy_leaf(leaf: Any) -> Any:
        nonlocal on_device
        if type(leaf) not in (torch.Tensor, torch.nn.Parameter):
            return copy.deepcopy(leaf)
        tensor = leaf.detach()
        storage = tensor.untyped_storage()
        if storage._cdata not in copies:
            source = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            pinned = tensor.is_cuda
            copies[storage._cdata] = torch.empty(len(storage), dtype=torch.uint8, pin_memory=pinned)
            copies[storage._cdata].copy_(source, non_blocking=pinned)
            on_device |= pinned
        target = torch.empty(0, dtype=tensor.dtype)
        host = copies[storage._cdata].untyped_storage()
        return target.set_(host, tensor.storage_offset(), tensor.size(), tensor.stride())

    copied: dict[str, Any] = tree_map(copy_leaf, state)
    if on_device:
        torch.cuda.synchronize()
    return copied
