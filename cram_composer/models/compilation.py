"""torch.compile of a masked LM, by layer or whole, and the return to eager mode."""

from __future__ import annotations

import torch
import torch._inductor.config as inductor
from torch import nn
from transformers import PreTrainedModel

from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM

# torch keeps this many graphs per function and runs further shapes eagerly. Every row length and batch size needs a
# graph, so a sequence-length warm-up in small steps needs more than the default of 8.
RECOMPILE_LIMIT = 64


def compile_model(model: PreTrainedModel, mode: str) -> list[nn.Module]:
    """Mark `model` for compilation at its first call; return the marked modules, for `uncompile`.

    Mode "regional" compiles each encoder layer (one graph serves them all: they differ in weights only) and CramBERT's
    decoder with the loss; "full" the whole model as one graph; "off" nothing. A model that has no list of layers is
    compiled whole.
    """
    regions: list[nn.Module] = []
    if mode == "regional":
        regions += encoder_layers(model)
        if isinstance(model, CramBertForMaskedLM):
            regions.append(model.head)
    if mode != "off":
        regions = regions or [model]
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        # Inductor writes the number of threads into the code, but not into the key of its cache unless it is set here.
        # Code for more threads than a process has cores spins in them, and processes side by side take each other's
        # cores.
        inductor.cpp.threads = torch.get_num_threads()
    for region in regions:
        region.compile(dynamic=False)  # training shapes are few and static, and static graphs run faster
    return regions


def uncompile(regions: list[nn.Module]) -> None:
    """Return modules to eager execution."""
    for region in regions:
        region._compiled_call_impl = None  # what nn.Module.compile sets; torch has no call to undo it


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The members of `layer_list`; empty where there is none."""
    return list(layer_list(model) or [])


def layer_list(model: nn.Module) -> nn.ModuleList | None:
    """CramBERT's layers; of another model, the list of modules that holds the most parameters."""
    if isinstance(model, CramBertForMaskedLM):
        return model.encoder.layers
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(p.numel() for p in layers.parameters()), default=None)
