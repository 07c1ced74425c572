"""Gradient clipping: by value, by norm (reusing a computed norm), and adaptive."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from composer.algorithms import GradientClipping
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import nn

from cram_composer.config.schema.algorithms import GradientClippingConfig
from cram_composer.optim.parameters import decoder_weights, optimized_parameters

_SMALLEST_NORM = 1e-3  # of weights, as in the paper


class AdaptiveGradientClipping(Algorithm):
    """Limit the norm of each gradient row relative to its weights (Brock et al. 2021, arXiv 2102.06171, section 4).

    Composer's version lacks the paper's minimum norm of weights, so weights that start at zero (biases, or the output
    of a block with `output_init: zero`) never get a gradient. As in the paper, the last linear layer is not clipped,
    which here is the decoder with its tied token embedding, of both networks in replaced-token detection.
    """

    def __init__(self, clipping_threshold: float) -> None:
        self._threshold = clipping_threshold

    def match(self, event: Event, state: State) -> bool:
        """Match after all gradients of a step are computed."""
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Clip the gradients."""
        decoders = {id(weight) for weight in decoder_weights(state.model)}
        clip_adaptively((p for p in state.model.parameters() if id(p) not in decoders), self._threshold)


@torch.no_grad()
def clip_adaptively(parameters: Iterable[nn.Parameter], threshold: float) -> None:
    """Scale each row g of a gradient to |g| <= threshold max(|w|, 0.001), for the same row w of the weights.

    A row holds the weights of one output of a matrix, or is a whole vector or scalar.
    """
    for parameter in parameters:
        if parameter.grad is not None:
            longest = threshold * _row_norms(parameter).clamp(min=_SMALLEST_NORM)
            # For a zero gradient the ratio is infinite and clamped to 1.
            parameter.grad.mul_((longest / _row_norms(parameter.grad)).clamp(max=1.0))


def _row_norms(tensor: torch.Tensor) -> torch.Tensor:
    rows = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    return torch.linalg.vector_norm(tensor, dim=rows, keepdim=tensor.ndim > 1)


class NormClipping(GradientClipping):
    """Clip by global norm (Pascanu et al. 2013, arXiv 1211.5063, section 3.2), reusing the non-finite guard's norm.

    Args:
        clipping_threshold: the largest norm of all gradients together.
        norm: returns the norm of the current step, a scalar, or None to compute it.
    """

    def __init__(self, clipping_threshold: float, norm: Callable[[], torch.Tensor | None]) -> None:
        super().__init__("norm", clipping_threshold)
        self._norm = norm

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Clip the gradients."""
        norm = self._norm() if event == Event.AFTER_TRAIN_BATCH else None
        if norm is None:
            super().apply(event, state, logger)
        else:
            nn.utils.clip_grads_with_norm_(optimized_parameters(state.optimizers), self.clipping_threshold, norm)


def gradient_clipping(config: GradientClippingConfig, norm: Callable[[], torch.Tensor | None]) -> Algorithm:
    """Build the algorithm of a clipping type; `norm` as in `NormClipping`."""
    if config.clipping_type == "adaptive":
        return AdaptiveGradientClipping(config.clipping_threshold)
    if config.clipping_type == "norm":
        return NormClipping(config.clipping_threshold, norm)
    return GradientClipping(config.clipping_type, config.clipping_threshold)
