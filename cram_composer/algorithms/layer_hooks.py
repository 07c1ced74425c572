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
    """Replacement for an encoder layer in its list, which runs wrappers around the layer's call in training.

    It shares the layer's dictionaries of parameters, buffers and submodules. State-dict names stay the same, and a
    submodule replaced in one is replaced in both. The layer is not registered as a submodule, so it keeps its class,
    hooks and compiled call. Forward hooks are no alternative: torch compiles them with the layer, so layers with
    different hooks would not share a graph.

    Args:
        layer: the layer; its attributes are copied.

    Attributes:
        wrappers: called as `wrapper(call, *arguments)`; the last one is outermost.
    """

    layer: nn.Module

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        own = ("hook", "_compiled_call_impl")
        vars(self).update({name: value for name, value in vars(layer).items() if not any(key in name for key in own)})
        vars(self)["layer"] = layer  # bypass nn.Module, which would register it as a submodule
        self.wrappers: list[Callable[..., Any]] = []

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Call the layer, in training through the wrappers. Hooks of this module, such as FSDP2's, run inside them."""
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

    Wrappers added later are outermost.

    Args:
        network: a masked LM with a list of layers.
        wrapper: the function to run.
        key: the setting named in the error message.

    Returns:
        The number of layers.

    Raises:
        ConfigError: the model has no list of layers.
    """
    layers = layer_list(network)
    if layers is None:
        raise ConfigError(f"{key}: needs a model with a list of layers; choose another model or set {key}=null")
    for index, layer in enumerate(layers):
        if not isinstance(layer, WrappedLayer):
            layer = layers[index] = WrappedLayer(layer)
        layer.wrappers.append(_with_index(wrapper, index))
    return len(layers)


def _with_index(wrapper: LayerWrapper, index: int) -> Callable[..., Any]:
    # deepcopy shares functions, but copying a bound method with the model would copy the algorithm too.
    return lambda *arguments, **named: wrapper(index, *arguments, **named)
