"""What a stack sees of the layers. This file travels with exported models."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .attention import Context
from .layer import CramBertLayer

Passes = list[tuple[int, int]]  # layer and number of a row's tokens, once for each time a row goes through a layer


class LayerCalls:
    """The layers of one forward, each with the context and the value embedding that it takes.

    `contexts` are those of layers that see everything and of local ones; `values` [B, L, H] by number.
    """

    def __init__(
        self, layers: Sequence[CramBertLayer], contexts: tuple[Context, Context | None], values: list[torch.Tensor]
    ) -> None:
        self._layers = layers
        self._contexts = contexts
        self._values = values

    def __call__(self, index: int, hidden: torch.Tensor) -> torch.Tensor:
        """Layer `index`, [B, L, H] -> [B, L, H]."""
        layer = self._layers[index]
        value = None if layer.value_embedding is None else self._values[layer.value_embedding]
        return layer(hidden, self._contexts[int(layer.is_local)], value)

    def strided(self, stride: int, count: int) -> LayerCalls:
        """For rows of which every `stride`-th position is left, the first `count` of them."""
        everywhere, local = self._contexts
        contexts = (everywhere.strided(stride, count), None if local is None else local.strided(stride, count))
        return LayerCalls(self._layers, contexts, [value[:, ::stride][:, :count] for value in self._values])

    def at(self, positions: torch.Tensor) -> LayerCalls:
        """For rows of which the positions int64 [B, K] are left."""
        everywhere, local = self._contexts
        contexts = (everywhere.at(positions), None if local is None else local.at(positions))
        return LayerCalls(self._layers, contexts, [pick(value, positions) for value in self._values])


def pick(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """`hidden` [B, L, H] at `positions` int64 [B, K]: [B, K, H]."""
    return hidden.gather(1, positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
