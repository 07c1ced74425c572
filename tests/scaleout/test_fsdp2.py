"""The modules that FSDP2 shards separately."""

from __future__ import annotations

from typing import Any, cast

from cram_composer.algorithms.layer_hooks import wrap_layer_calls
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.scaleout.fsdp2 import Fsdp2
from tests.models.tiny_models import tiny_model


def test_wrapped_layers_are_sharded_separately():
    network = tiny_model(num_hidden_layers=3)
    Fsdp2(cast(Any, None), cast(Any, None), 2).prepare_model(MaskedLMTrainingModel(network))
    wrap_layer_calls(network, lambda index, call, *arguments: call(*arguments), "a.key")
    found = [name for name, module in network.named_modules() if network.fsdp_wrap_fn(module)]
    assert found == [f"encoder.layers.{index}" for index in range(3)]
