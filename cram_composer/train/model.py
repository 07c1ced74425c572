"""The model of a run, its optimizer and its scale-out strategy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from composer.utils import dist

from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.schema.objective import ObjectiveConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.data.loading.prepare import PreparedDataset
from cram_composer.data.masking import mean_capacity
from cram_composer.device import DeviceChoice
from cram_composer.errors import CramError
from cram_composer.models.factory import build_model, check_rows
from cram_composer.models.flops import flops_per_token
from cram_composer.models.training_model import MaskedLMTrainingModel, build_training_model
from cram_composer.optim.factory import build_optimizer
from cram_composer.optim.parameters import describe_parameters
from cram_composer.scaleout.registry import build_strategy
from cram_composer.scaleout.strategy import Strategy
from cram_composer.train.data import Batches

_BYTES_OF_WEIGHT = 4
_BYTES_IN_TRAINING = 12  # at least: the weight, its gradient and one moment, all fp32


@dataclass(frozen=True)
class ModelSetup:
    """A model with its optimizer and scale-out strategy.

    Attributes:
        model: the model, not sharded yet.
        optimizer: its optimizer; "peak_lr" of each group is the configured rate.
        strategy: trains the model on several devices.
        parameters: number of weights, tied ones counted once.
        embedding_parameters: those of them that are token or position embeddings, tied to an output or not.
    """

    model: MaskedLMTrainingModel
    optimizer: torch.optim.Optimizer
    strategy: Strategy
    parameters: int
    embedding_parameters: int


def set_up_model(config: RunConfig, device: DeviceChoice, manifest: Mapping[str, Any]) -> ModelSetup:
    """Build the model with fresh weights, drawn from torch's global generator, and its optimizer.

    Raises:
        CramError: the model cannot fit into the memory of this machine, or be trained on the rows of the data.
    """
    _check_memory(config.model, manifest["vocab_size"], device)
    network = build_model(config.model, manifest["vocab_size"], manifest["special_tokens"], config.objective)
    if config.model.architecture == "hf":
        check_rows(network, manifest["sequence_length"])
    strategy = build_strategy(config, device, dist.get_world_size())
    _, autocast_dtype = strategy.precision()
    compile_mode, changed = strategy.compile_mode()
    model = build_training_model(network, autocast_dtype, compile_mode)
    if changed is not None:
        model.compile_state = f"{compile_mode} ({changed})"
    strategy.prepare_model(model)
    model.use_kernels(config.model, device.name, device.precision)
    optimizer = build_optimizer(config.optimizer, model, config.model.mup_base_width)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    embeddings = sum(found.parameter.numel() for found in describe_parameters(network) if found.role == "embedding")
    weights = sum(parameter.numel() for parameter in network.parameters())
    return ModelSetup(model, optimizer, strategy, weights, embeddings)


def _check_memory(model: ModelConfig, vocab_size: int, device: DeviceChoice) -> None:
    """Refuse a CramBERT whose weights, or on a CPU weights, gradients and optimizer, exceed the machine's memory.

    Otherwise Linux would end this process or others. The estimate counts the large matrices only.
    """
    if model.architecture != "crambert":
        return
    width, layers = model.hidden_size, model.num_hidden_layers
    blocks = 4 * layers * width**2 + layers // model.ffn_every * model.intermediate_size * width
    embeddings = (model.embedding_size or width) + 2 * width * model.value_embeddings
    parameters = blocks + vocab_size * embeddings
    needed = parameters * (_BYTES_IN_TRAINING if device.name == "cpu" else _BYTES_OF_WEIGHT)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise CramError(
            f"model: {parameters / 1e9:.3g} billion parameters need {needed / 1e9:,.0f} GB, but this machine has "
            f"{available / 1e9:,.0f} GB; lower model.hidden_size, num_hidden_layers or intermediate_size"
        )


def flops_per_full_row_token(
    setup: ModelSetup, batches: Batches, data: PreparedDataset, objective: ObjectiveConfig
) -> float:
    """Return the FLOPs of forward and backward per token of a full row. Call it before weights are sharded."""
    length = data.manifest["sequence_length"]
    return flops_per_token(setup.model.model, length, mean_capacity(batches.loader.collator, objective, length))
