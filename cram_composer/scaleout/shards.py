"""This rank's part of a weight: the whole weight, or a shard of FSDP2 or ZeRO-3.

Element-wise computations, such as an average of the weights, run on shards without communication. `whole` and
`shard_of` convert between shards and whole tensors for checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def reshard(model: nn.Module) -> None:
    """Shard every parameter again, because FSDP2 leaves the outermost weights gathered after an evaluation."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(parameter: Any) -> torch.Tensor:
    """Return this rank's part of a weight, without autograd. Call `settle` after writing to it."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.detach().flatten()
    return parameter.detach()


def settle(parameter: Any) -> None:
    """Update the gathered copy that ZeRO-3 may hold after a write to `local(parameter)`. Collective."""
    if hasattr(parameter, "ds_tensor") and parameter.numel() == parameter.ds_numel:
        parameter.data.copy_(whole(parameter, local(parameter)))


def whole(parameter: Any, shard: torch.Tensor) -> torch.Tensor:
    """Gather the whole tensor from this rank's `shard`, on its device. Collective."""
    if isinstance(parameter, DTensor):
        placed = DTensor.from_local(
            shard, parameter.device_mesh, parameter.placements, shape=parameter.shape, stride=parameter.stride()
        )
        return placed.full_tensor()
    if hasattr(parameter, "ds_tensor"):
        gathered = [torch.empty_like(shard) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, shard.contiguous())
        return torch.cat(gathered)[: parameter.ds_numel].view(parameter.ds_shape)
    return shard


def shard_of(parameter: Any, tensor: torch.Tensor) -> torch.Tensor:
    """Return this rank's part of a whole `tensor`, on the device of `parameter`; the inverse of `whole`."""
    shard = local(parameter)
    if isinstance(parameter, DTensor):
        placed = distribute_tensor(tensor.to(shard.device), parameter.device_mesh, parameter.placements)
        return placed.to_local()
    if hasattr(parameter, "ds_tensor"):
        padded = tensor.new_zeros(shard.numel() * torch.distributed.get_world_size())
        padded[: tensor.numel()] = tensor.flatten()
        return padded.view(-1, shard.numel())[torch.distributed.get_rank()].to(shard.device, copy=True)
    return tensor.to(shard.device)
