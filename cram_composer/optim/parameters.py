"""Role and depth of each parameter of a masked LM, for CramBERT and models of transformers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Number of projections (query, key, value) stacked in a matrix, by the last part of its module's name. Matrices fused
# in another order (by head, as in DeBERTa) count as one projection.
_FUSED_ATTENTION = {"qkv": 3, "Wqkv": 3}
# The two matrices of a feed-forward block. The first is [value; gate] if it has twice as many rows as the second has
# columns.
_FEEDFORWARDS = (("w_in", "w_out"), ("Wi", "Wo"))


@dataclass(frozen=True)
class ModelParameter:
    """A trainable parameter.

    Attributes:
        role: "embedding" (of tokens, positions, ...), "output" (a decoder not tied to an embedding), "matrix" (of any
            other linear layer) or "other" (norms, biases, scalars).
        depth: 0 for embeddings and everything before the layers, i + 1 in layer i, and one more than the last layer's
            after the layers.
        parts: number of projections stacked along the rows of a matrix.
        in_layer: the parameter belongs to a layer.
    """

    name: str
    parameter: nn.Parameter
    role: str
    depth: int
    parts: int
    in_layer: bool


def describe_parameters(model: nn.Module) -> list[ModelParameter]:
    """Describe every trainable parameter of `model` once, in order; tied parameters appear under their first name."""
    depths = _layer_depths(model)
    last = max(depths.values(), default=0) + 1
    embeddings = _ids(module.weight for module in model.modules() if isinstance(module, nn.Embedding))
    linears = _ids(module.weight for module in model.modules() if isinstance(module, nn.Linear | Conv1D))
    outputs = _ids(decoder_weights(model))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    described, before_layers = [], bool(depths)
    for name, parameter in model.named_parameters():
        layer = next((depth for prefix, depth in depths.items() if name.startswith(prefix)), None)
        before_layers = before_layers and layer is None
        role = "other"
        if id(parameter) in embeddings:
            role = "embedding"
        elif id(parameter) in outputs:
            role = "output"
        elif id(parameter) in linears:
            role = "matrix"
        depth = 0 if before_layers or (role == "embedding" and layer is None) else last if layer is None else layer
        if parameter.requires_grad:
            parts = _count_projections(name, shapes) if role == "matrix" else 1
            described.append(ModelParameter(name, parameter, role, depth, parts, layer is not None))
    return described


def optimized_parameters(optimizers: Iterable[Optimizer]) -> list[nn.Parameter]:
    """List the parameters of `optimizers`. Walking the modules of the model would be too slow for every step."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def optimized_gradients(optimizers: Iterable[Optimizer]) -> list[torch.Tensor]:
    """List the gradients of the parameters of `optimizers`."""
    return [p.grad for p in optimized_parameters(optimizers) if p.grad is not None]


def hidden_size(model: nn.Module) -> int | None:
    """Return the width of the masked LM in `model`, None if there is none."""
    return next(
        (getattr(m.config, "hidden_size", None) for m in model.modules() if isinstance(m, PreTrainedModel)), None
    )


def _layer_depths(model: nn.Module) -> dict[str, int]:
    """Map the name prefix of each layer's parameters to its depth, starting at 1.

    Layers are the members of the outermost module lists. Sibling lists of the same length hold parts of the same
    layers, such as attention and feed-forward blocks in XLM.
    """
    depths: dict[str, int] = {}
    known: dict[tuple[str, int, int], int] = {}
    for name, module in model.named_modules():
        inner = any(name.startswith(prefix) for prefix in depths)
        if inner or not isinstance(module, nn.ModuleList) or all(isinstance(m, nn.Embedding) for m in module):
            continue
        parent = name.rpartition(".")[0]
        for index in range(len(module)):
            depth = known.setdefault((parent, len(module), index), len(known) + 1)
            depths[f"{name}.{index}." if name else f"{index}."] = depth
    return depths


def decoder_weights(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield the weight of the decoder of every masked LM in `model`."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            decoder = module.get_output_embeddings()
            if isinstance(decoder, nn.Linear):
                yield decoder.weight


def _count_projections(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    path = name.removesuffix(".weight")
    parent, _, module = path.rpartition(".")
    rows, columns = shapes[name]
    if module in _FUSED_ATTENTION:
        return _FUSED_ATTENTION[module] if rows == _FUSED_ATTENTION[module] * columns else 1
    for first, second in _FEEDFORWARDS:
        taken = shapes.get(f"{parent}.{second}.weight")
        if module == first and taken is not None and rows == 2 * taken[1]:
            return 2
    return 1


def _ids(parameters: Iterable[torch.Tensor]) -> set[int]:
    return {id(parameter) for parameter in parameters}
