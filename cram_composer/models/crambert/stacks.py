"""How the layers are chained, by config name. This file travels with exported models.

To add one: a module whose forward takes the layers as a `LayerCalls` and the embedded rows, and a line in `STACKS`.
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
        """[B, L, H] -> [B, L, H]."""
        for index in range(self.num_layers):
            hidden = layers(index, hidden)
        return hidden

    def passes(self, length: int) -> Passes:
        """What rows of `length` tokens go through in training."""
        return [(index, length) for index in range(self.num_layers)]


class InputSkipStack(PlainStack):
    """Before each layer, the residual stream becomes a x + b x_0, where x_0 is the embedding (Jordan et al. 2024,
    github.com/KellerJordan/modded-nanogpt, record of 11 November 2024). a starts at 1 and b at 0: a plain stack."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        # A vector, which optimizers do not take for a matrix to decay or precondition: two for each layer.
        self.scales = nn.Parameter(torch.empty(2 * config.num_hidden_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as a plain stack."""
        with torch.no_grad():
            self.scales.copy_(torch.tensor([1.0, 0.0]).repeat(self.num_layers))

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """[B, L, H] -> [B, L, H]."""
        embedded = hidden
        for index in range(self.num_layers):
            stream, skip = self.scales[2 * index : 2 * index + 2].to(hidden.dtype)
            hidden = layers(index, stream * hidden + skip * embedded)
        return hidden


class WeightedStack(PlainStack):
    """ELC-BERT (Charpentier and Samuel 2023, arXiv 2311.02265, section 3): a layer's input is a weighted mean of what
    the embedding and all layers before it have added to the stream; softmax weights, all equal at first."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        # One row after the other, the weights of the n + 1 outputs before layer n; the last are those of the encoder's
        # output. A vector, which optimizers do not take for a matrix to decay or precondition.
        self.weights = nn.Parameter(torch.empty((config.num_hidden_layers + 1) * (config.num_hidden_layers + 2) // 2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with equal weights."""
        nn.init.zeros_(self.weights)

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """[B, L, H] -> [B, L, H]."""
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
    """The same layers `repeats` times (Dehghani et al. 2018, arXiv 1807.03819; Lan et al. 2019, arXiv 1909.11942)."""

    def __init__(self, config: CramBertConfig) -> None:
        super().__init__(config)
        self.repeats = config.repeats

    def forward(self, layers: LayerCalls, hidden: torch.Tensor) -> torch.Tensor:
        """[B, L, H] -> [B, L, H]."""
        for _ in range(self.repeats):
            hidden = super().forward(layers, hidden)
        return hidden

    def passes(self, length: int) -> Passes:
        """What rows of `length` tokens go through in training."""
        return super().passes(length) * self.repeats


STACKS: dict[str, Callable[[CramBertConfig], nn.Module]] = {
    "elc": WeightedStack,
    "funnel": Funnel,
    "input-skip": InputSkipStack,
    "plain": PlainStack,
    "recurrent": RecurrentStack,
    "token-dropping": TokenDropping,
}
