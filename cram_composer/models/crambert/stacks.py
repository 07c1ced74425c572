"""Ways to chain the layers, by config name. This file travels with exported models.

To add one, write a module whose forward takes a `LayerCalls` and the embedded rows, and add a line to `STACKS`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from .configuration_crambert import CramBertConfig
from .funnel import Funnel
from .layer_calls import LayerCalls, Passes
from .token_dropping import TokenDropping


class PlainStack(nn.Module):
    """One layer after the other."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__()
        self.num_layers = config.num_hidden_layers

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers: [B, L, H] -> [B, L, H]."""
        for index in range(self.num_layers):
            hidden = layers(index, hidden)
        return hidden

    def passes(self, length: int) -> Passes:
        """List the layer calls of a row of `length` tokens in training."""
        return [(index, length) for index in range(self.num_layers)]


class InputSkipStack(PlainStack):
    """A stack with learned skip connections from the embedding to every layer.

    The input of a layer is a x + b x_0, where x is the residual stream and x_0 the embedding (Jordan et al. 2024,
    github.com/KellerJordan/modded-nanogpt, record of 11 November 2024). Initially a = 1 and b = 0, as in a plain stack.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        # Two scales per layer, stored as a vector, so that optimizers neither decay nor precondition them as a matrix.
        self.scales = nn.Parameter(torch.empty(2 * config.num_hidden_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize to a plain stack."""
        with torch.no_grad():
            self.scales.copy_(torch.tensor([1.0, 0.0]).repeat(self.num_layers))

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers: [B, L, H] -> [B, L, H]."""
        embedded = hidden
        for index in range(self.num_layers):
            stream, skip = self.scales[2 * index : 2 * index + 2].to(hidden.dtype)
            hidden = layers(index, stream * hidden + skip * embedded)
        return hidden


class WeightedStack(PlainStack):
    """ELC-BERT (Charpentier and Samuel 2023, arXiv 2311.02265, section 3).

    The input of a layer is a weighted mean of the contributions of the embedding and of all layers before it to the
    residual stream. The weights are a softmax and initially equal.
    """

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        # For each layer n the weights of the n + 1 outputs before it, then those of the encoder's output. Stored as a
        # vector, so that optimizers neither decay nor precondition them as a matrix.
        self.weights = nn.Parameter(torch.empty((config.num_hidden_layers + 1) * (config.num_hidden_layers + 2) // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize to equal weights."""
        nn.init.zeros_(self.weights)

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers: [B, L, H] -> [B, L, H]."""
        outputs = [hidden]
        for index in range(self.num_layers):
            given = self._mean(outputs)
            outputs.append(layers(index, given) - given)
        return self._mean(outputs)

    def _mean(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        count = len(outputs)
        start = count * (count - 1) // 2
        weights = self.weights[start : start + count].softmax(0).to(outputs[0].dtype)
        return torch.stack([weight * output for weight, output in zip(weights, outputs, strict=True)]).sum(0)


class RecurrentStack(PlainStack):
    """A plain stack applied `repeats` times (Dehghani et al. 2018, 1807.03819; Lan et al. 2019, 1909.11942)."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.repeats = config.repeats

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """Run the layers: [B, L, H] -> [B, L, H]."""
        for _ in range(self.repeats):
            hidden = super().forward(layers, hidden)
        return hidden

    def passes(self, length: int) -> Passes:
        """List the layer calls of a row of `length` tokens in training."""
        return super().passes(length) * self.repeats


STACKS: dict[str, Callable[[CramBertConfig], nn.Module]] = {
    "elc": WeightedStack,
    "funnel": Funnel,
    "input-skip": InputSkipStack,
    "plain": PlainStack,
    "recurrent": RecurrentStack,
    "token-dropping": TokenDropping,
}
