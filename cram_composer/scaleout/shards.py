"""The part of a weight that this rank holds: all of it, or a shard of FSDP2's or of ZeRO-3's.

What is computed entry by entry (an average of the weights) is computed on shards as it is on weights, and needs no
communication; `whole` and `shard_of` go from one to the other for checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor


def reshard(model: nn.Module) -> None:
    """Have every parameter be its shard: after an evaluation, FSDP2 leaves the outermost weights gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(parameter: Any) -> torch.Tensor:
    """What this rank holds of a weight, without autograd; to write to it is to change the weight. See `settle`."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().detach()
    if hasattr(parameter, "ds_tensor"):
        return parameter.ds_tensor.detach().flatten()
    return parameter.detach()


def settle(parameter: Any) -> None:
    """After writing to `local(parameter)`: ZeRO-3 may have the weight gathered as well. Collective."""
    if hasattr(parameter, "ds_tensor") and parameter.numel() == parameter.ds_numel:
        parameter.data.copy_(whole(parameter, local(parameter)))


def whole(parameter: Any, shard: torch.Tensor) -> torch.Tensor:
    """The tensor of all of the weight whose part on this rank is `shard`, on its device. Collective."""
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
    """This rank's part of a whole tensor that belongs to `parameter`, on its device; the inverse of `whole`."""
    held = local(parameter)
    if isinstance(parameter, DTensor):
        placed = distribute_tensor(tensor.to(held.device), parameter.device_mesh, parameter.placements)
        return placed.to_local()
    if hasattr(parameter, "ds_tensor"):
        padded = tensor.new_zeros(held.numel() * torch.distributed.get_world_size())
        padded[: tensor.numel()] = tensor.flatten()
        return padded.view(-1, held.numel())[torch.distributed.get_rank()].to(held.device, copy=True)
    return tensor.to(held.device)
