"""What happens around the call of an encoder layer in training, outside of what torch compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from cram_composer.errors import ConfigError
from cram_composer.models.compilation import encoder_layers

# From the number of a layer, its call, and the arguments of that, hidden states first, to what the call would return.
Around = Callable[..., Any]


def around_layers(network: nn.Module, around: Around, key: str) -> int:
    """Have `around(index, call, hidden, *others)` run in the place of every call of an encoder layer in training.

    What is set last is outermost. The layers keep their places and names, and their own calls stay the regions that are
    compiled: a hook would be compiled with them, and be one more thing that a graph depends on.

    Args:
        network: a masked LM whose layers are in a list.
        around: what runs.
        key: the setting to name where there are no such layers.

    Returns:
        The number of layers.

    Raises:
        ConfigError: there are none.
    """
    layers = encoder_layers(network)
    if not layers:
        raise ConfigError(f"{key}: this model has no list of layers; use another one, or {key}=null")
    for index, layer in enumerate(layers):
        if "around" not in vars(layer):
            kind: Any = type(layer)
            layer.__class__ = _wrapped(kind)
            vars(layer)["around"] = []
        vars(layer)["around"].append(_numbered(around, index))
    return len(layers)


def _numbered(around: Around, index: int) -> Around:
    # A function, which a deep copy of the model takes as it is; of a method it would copy the algorithm as well.
    return lambda *arguments, **others: around(index, *arguments, **others)


@functools.cache
def _wrapped(layer_class: Any) -> type[nn.Module]:
    """One class for all layers of a class, since only modules of the same class share a graph."""

    def call(self: Any, *arguments: Any, **others: Any) -> Any:
        run = functools.partial(layer_class.__call__, self)
        if self.training:
            for around in self.around:
                run = functools.partial(around, run)
        return run(*arguments, **others)

    return type(layer_class.__name__, (layer_class,), {"__call__": call, "__module__": layer_class.__module__})
