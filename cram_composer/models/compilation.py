"""torch.compile of a masked LM, by layer or whole, and the return to eager mode."""

from __future__ import annotations

import torch
import torch._inductor.config as inductor
from torch import nn
from transformers import PreTrainedModel

from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.replaced_tokens import ReplacedTokenDetector

# torch keeps this many graphs per function and runs further shapes eagerly. Every row length and batch size needs its
# own graph, so a sequence-length warm-up in small steps exceeds the default of 8.
RECOMPILE_LIMIT = 64


def compile_model(model: PreTrainedModel, mode: str) -> list[nn.Module]:
    """Mark `model` for compilation at its first call; return the marked modules, for `uncompile`.

    Mode "regional" compiles each encoder layer, and CramBERT's decoder together with the loss; the layers share one
    graph because they differ only in weights. Replaced-token detection has two encoders, and two heads or three. "full"
    compiles the whole model as one graph, "off" nothing. A model without a list of layers is always compiled as a
    whole.
    """
    regions: list[nn.Module] = []
    if mode == "regional":
        regions += encoder_layers(model)
        if isinstance(model, ReplacedTokenDetector):
            regions += [*model.generator.encoder.layers, model.sampler, model.detector]
        if isinstance(model, CramBertForMaskedLM) and model.head is not None:
            regions.append(model.head)
    if mode != "off":
        regions = regions or [model]
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        # Inductor chooses loops for a number of threads, but its cache key contains the number only if set here.
        inductor.cpp.threads = torch.get_num_threads()
        inductor.cpp.dynamic_threads = True  # the run may change the number, see train/cpu_share.py
    for region in regions:
        region.compile(dynamic=False)  # training shapes are few and static, and static graphs run faster
    return regions


def uncompile(regions: list[nn.Module]) -> None:
    """Return modules to eager execution."""
    for region in regions:
        region._compiled_call_impl = None  # set by nn.Module.compile; torch has no call to undo it


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers in `layer_list`, empty for a model without such a list."""
    return list(layer_list(model) or [])


def layer_list(model: nn.Module) -> nn.ModuleList | None:
    """Return CramBERT's layers, or for another model the module list with the most parameters."""
    if isinstance(model, CramBertForMaskedLM):
        return model.encoder.layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=None)
