"""The interface between a stack and its layers. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .attention import Context
from .layer import CramBertLayer

Passes = list[tuple[int, int]]  # (layer, tokens of a row) for each call of a layer


class LayerCalls:
    """The layers of one forward pass, bound to their contexts and value embeddings.

    Args:
        layers: the layers.
        contexts: of the global layers, and of the local ones.
        values: value embeddings [B, L, H] by number.
        inputs: a list to append the input of each call to; None discards them.
    """

    def __init__(
        self,
        layers: Sequence[CramBertLayer],
        contexts: tuple[Context, Context | None],
        values: list[torch.Tensor],
        inputs: list[torch.Tensor] | None = None,
    ) -> None:
        self._layers = layers
        self._contexts = contexts
        self._values = values
        self._inputs = inputs

    def __call__(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Run layer `index`: [B, L, H] -> [B, L, H]."""
        if self._inputs is not None:
            self._inputs.append(hidden)
        layer = self._layers[index]
        value = None if layer.value_embedding is None else self._values[layer.value_embedding]
        return layer(hidden, self._contexts[int(layer.is_local)], value)

    def strided(self, stride: int, count: int) -> LayerCalls:
        """Return the calls for rows reduced to every `stride`-th position, the first `count` of them."""
        everywhere, local = self._contexts
        contexts = (everywhere.strided(stride, count), None if local is None else local.strided(stride, count))
        values = [value[:, ::stride][:, :count] for value in self._values]
        return LayerCalls(self._layers, contexts, values, self._inputs)

    def at(self, positions: torch.Tensor) -> LayerCalls:
        """Return the calls for rows reduced to the positions int64 [B, K]."""
        everywhere, local = self._contexts
        contexts = (everywhere.at(positions), None if local is None else local.at(positions))
        values = [pick(value, positions) for value in self._values]
        return LayerCalls(self._layers, contexts, values, self._inputs)


def pick(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Gather `hidden` [B, L, H] at `positions` int64 [B, K]: [B, K, H]."""
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
