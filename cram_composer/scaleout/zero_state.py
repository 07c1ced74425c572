"""Conversion of a ZeRO engine's weights and optimizer between flat shards and the format of other checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import nn

from cram_composer.scaleout.shards import local, settle, shard_of

States = Mapping[str, Mapping[str, Any]]  # optimizer state by parameter name


@dataclass(frozen=True)
class Piece:
    """A contiguous part of a weight in a flat fp32 tensor.

    Attributes:
        flat: index of the flat tensor.
        start: first entry in the flat tensor.
        at: first entry in the flattened weight.
        numel: number of entries.
    """

    flat: int
    start: int
    at: int
    numel: int


class ZeroState:
    """Gather and restore the sharded state of an engine of stage 1, 2 or 3. All methods are collective.

    Args:
        engine: the engine.
        optimizer: the plain optimizer inside the engine.
        groups: parameter names of each optimizer group before the engine flattened it.
    """

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer, groups: list[list[str]]) -> None:
        self._module: nn.Module = engine.module
        self._zero = engine.optimizer
        self._optimizer = optimizer
        self._groups = groups
        self._parameters = dict(self._module.named_parameters())
        stage3 = hasattr(self._zero, "fp32_partitioned_groups_flat")
        self._flats: list[torch.Tensor] = list(
            self._zero.fp32_partitioned_groups_flat if stage3 else self._zero.single_partition_of_fp32_groups
        )
        find = self._stage3_piece if stage3 else self._piece
        self._pieces = {name: find(p) for name, p in self._parameters.items()}

    def _piece(self, parameter: Any) -> Piece | None:
        mapping = parameter._hp_mapping
        if mapping is None:  # on other ranks
            return None
        flat, weight = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Piece(mapping.param_group_index, flat.start, weight.start, weight.numel)

    def _stage3_piece(self, parameter: Any) -> Piece:
        flat, start, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
        size = parameter.partition_numel()
        at = min(torch.distributed.get_rank() * size, parameter.ds_numel)
        return Piece(flat, start, at, min(size, parameter.ds_numel - at))

    def weights(self) -> dict[str, torch.Tensor]:
        """Gather the state dict of the model: complete fp32 weights on the CPU."""
        whole = {id(p): self._gather(name, lambda flat: flat) for name, p in self._parameters.items()}
        state = self._module.state_dict(keep_vars=True)
        return {name: whole[id(t)] if id(t) in whole else t.detach().cpu() for name, t in state.items()}

    def set_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Restore the result of `weights`."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._scatter(name, weights[name], lambda flat: flat)
                local(parameter).copy_(shard_of(parameter, weights[name]))
                settle(parameter)

    def optimizer(self) -> dict[str, Any]:
        """Gather the optimizer in Composer's format: by class name, with states and groups by parameter name."""
        shapes = self._state_names()
        states = {
            name: {key: self._state(name, key, shaped) for key, shaped in shapes.items()} for name in self._parameters
        }
        groups = [
            {**{key: value for key, value in group.items() if key != "params"}, "params": names}
            for group, names in zip(self._optimizer.param_groups, self._groups, strict=True)
        ]
        return {type(self._optimizer).__qualname__: {"state": states if shapes else {}, "param_groups": groups}}

    def set_optimizer(self, states: States) -> None:
        """Restore states returned by `optimizer` or saved from a plain optimizer; groups without states are skipped."""
        for index, flat in enumerate(self._flats):
            members = [name for name, piece in self._pieces.items() if piece is not None and piece.flat == index]
            of_first = next((states[name] for name in members if states.get(name)), None)
            if of_first is None:
                continue
            flat_state = self._optimizer.state[flat]
            for key, value in of_first.items():
                if _has_shape_of(value, self._shape(members[0])):
                    flat_state[key] = torch.zeros_like(flat)
                    for name in members:
                        self._scatter(name, states[name][key], self._flat_state(key))
                else:
                    flat_state[key] = value.to(flat.device, copy=True) if isinstance(value, torch.Tensor) else value

    def _flat_state(self, key: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda flat: self._optimizer.state[flat][key]

    def _state_names(self) -> dict[str, bool]:
        """Return the keys of the optimizer's states and whether each has its weight's shape; same on all ranks."""
        return {
            key: _has_shape_of(value, flat.shape)
            for flat in self._flats
            for key, value in self._optimizer.state.get(flat, {}).items()
        }

    def _state(self, name: str, key: str, shaped: bool) -> Any:
        if shaped:
            return self._gather(name, self._flat_state(key))
        # One value is enough, because every step updates all weights.
        value = next(self._optimizer.state[flat][key] for flat in self._flats if flat in self._optimizer.state)
        return value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value

    def _shape(self, name: str) -> torch.Size:
        parameter: Any = self._parameters[name]
        return getattr(parameter, "ds_shape", parameter.shape)

    def _gather(self, name: str, of_flat: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Gather the whole tensor of a weight from the pieces of all ranks, on the CPU."""
        shape, piece = self._shape(name), self._pieces[name]
        device = local(self._parameters[name]).device
        summed = torch.zeros(shape.numel(), dtype=torch.float32, device=device)
        if piece is not None:
            part = of_flat(self._flats[piece.flat])[piece.start : piece.start + piece.numel]
            summed[piece.at : piece.at + piece.numel] = part.to(device)
        torch.distributed.all_reduce(summed)
        return summed.view(shape).cpu()

    def _scatter(self, name: str, value: torch.Tensor, of_flat: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Write this rank's piece of a whole tensor into its flat tensor."""
        piece = self._pieces[name]
        if piece is not None:
            place = of_flat(self._flats[piece.flat])[piece.start : piece.start + piece.numel]
            place.data.copy_(value.flatten()[piece.at : piece.at + piece.numel])


def _has_shape_of(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == shape and value.ndim > 0
