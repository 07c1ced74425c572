"""Wrappers around the calls of the encoder layers in training, outside the regions that torch compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from cram_composer.errors import ConfigError
from cram_composer.models.compilation import layer_list

# (layer number, call, *arguments of the call, hidden states first) -> the result of the call
LayerWrapper = Callable[..., Any]


class WrappedLayer(nn.Module):
    """Stand in for an encoder layer in its list and run wrappers around its call in training.

    Parameters, buffers and submodules are the layer's own dictionaries, so names in state dicts stay and a replaced
    submodule is replaced in both. The layer itself is no submodule: it keeps its class, its hooks and its compiled
    call. A hook would be compiled with the layer, and layers with different hooks share no graph.

    Args:
        layer: the layer; its attributes are copied.

    Attributes:
        wrappers: called as `wrapper(call, *arguments)`; the last is outermost.
    """

    layer: nn.Module

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        own = ("hook", "_compiled_call_impl")
        vars(self).update({name: value for name, value in vars(layer).items() if not any(key in name for key in own)})
        vars(self)["layer"] = layer  # past nn.Module, which would register it as a submodule
        self.wrappers: list[Callable[..., Any]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the layer, in training through the wrappers; this module's hooks (FSDP2's) run inside them."""
        call: Callable[..., Any] = super().__call__
        if self.training:
            for wrapper in self.wrappers:
                call = functools.partial(wrapper, call)
        return call(*arguments, **named)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Call the layer."""
        return self.layer(*arguments, **named)

    def train(self, mode: bool = True) -> WrappedLayer:
        """Set the mode of the layer too."""
        self.layer.training = mode
        return super().train(mode)


def wrap_layer_calls(network: nn.Module, wrapper: LayerWrapper, key: str) -> int:
    """Run `wrapper(index, call, hidden, *others)` in place of every call of an encoder layer in training.

    Wrappers that are added later are outermost.

    Args:
        network: a masked LM whose layers are in a list.
        wrapper: the function to run.
        key: the setting to name in the error message.

    Returns:
        The number of layers.

    Raises:
        ConfigError: the model has no list of layers.
    """
    layers = layer_list(network)
    if layers is None:
        raise ConfigError(f"{key}: this model has no list of layers; use another one, or {key}=null")
    for index, layer in enumerate(layers):
        if not isinstance(layer, WrappedLayer):
            layer = layers[index] = WrappedLayer(layer)
        layer.wrappers.append(_with_index(wrapper, index))
    return len(layers)


def _with_index(wrapper: LayerWrapper, index: int) -> Callable[..., Any]:
    # A function, which deepcopy shares; copying a bound method with the model would copy its algorithm too.
    return lambda *arguments, **named: wrapper(index, *arguments, **named)
