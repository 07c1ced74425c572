"""What one training step holds in memory, measured on tensors without content (torch's FakeTensorMode).

The run's own model and optimizer do their own step on the run's own microbatch, and every tensor they make is counted;
nothing is computed, and nothing of that size is in memory. Sizes are exact for the kernels that a CPU takes, without
compilation: scaled-dot-product attention that keeps no L x L matrix, autocast's rules for a CPU. Compiled layers keep
less, since Inductor computes point-wise operations again in the backward. A model that looks into its input is run on
one and on two real rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cram_composer.config.schema.run import RunConfig
from cram_composer.models.compilation import encoder_layers
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim.factory import build_optimizer
from cram_composer.optim.parameters import describe
from cram_composer.planning.model_spec import ModelSpec, without_numbers

_BITS_8_SMALLEST = 4096  # elements: bitsandbytes keeps the moments of smaller tensors in fp32
_BITS_8_BLOCK = 256  # elements that share a scale in fp32


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device that holds everything, without sharding.

    `activations` is the peak of what a microbatch makes on its way forward and backward: activations, logits and
    temporaries, without gradients. It is `activations_fixed` (weights in the dtype of autocast, above all) and
    `activations_row` for every row.
    """

    parameters: int  # number
    weights: int
    gradients: int
    optimizer: int
    averages: int  # copies of the weights that algorithms keep on the device
    averages_host: int  # and in the memory of the host
    largest_layer: int  # weights
    outside_layers: int  # weights: embeddings, head
    activations_fixed: float
    activations_row: float

    def activations(self, rows: int) -> float:
        """Of a microbatch of `rows` rows."""
        return self.activations_fixed + self.activations_row * rows


class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside hold at one time; a storage counts once, until nothing refers to it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf.untyped_storage()) not in before:  # not a view, nor in place
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def step_memory(spec: ModelSpec, precision: str) -> StepMemory:
    """Measure one step of a run whose device computes in `precision`: bf16, fp16 or fp32. Raises CramError."""
    config = spec.config
    dtype = None if precision == "fp32" else torch.bfloat16  # autocast of a CPU has no fp16, which is as large
    fixed, row = _activations(spec, dtype)
    with without_numbers():
        model = spec.model(dtype)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weights = tensor_bytes(model.parameters())
        layers = [tensor_bytes(layer.parameters()) for layer in encoder_layers(model.model)]
        optimizer = optimizer_bytes(config, model)
    averages = sum(part is not None for part in (config.algorithms.ema, config.algorithms.swa, config.algorithms.sam))
    lawa = config.algorithms.lawa
    return StepMemory(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        weights=weights,
        gradients=tensor_bytes(parameters),
        optimizer=optimizer,
        averages=averages * weights,
        averages_host=0 if lawa is None else lawa.k * weights,
        largest_layer=max(layers, default=0),
        outside_layers=weights - sum(layers),
        activations_fixed=fixed,
        activations_row=row,
    )


def _activations(spec: ModelSpec, dtype: torch.dtype | None) -> tuple[float, float]:
    """Bytes of any microbatch, and of each of its rows, from two sizes of it."""
    rows = spec.config.train.device_train_microbatch_size
    try:
        with without_numbers():
            small, large = (activation_peak(spec, spec.model(dtype), count) for count in (rows, 2 * rows))
    except DataDependentOutputException:  # some models of transformers look into their masks: compute, on little
        rows = 1
        small, large = (activation_peak(spec, spec.model(dtype), count) for count in (rows, 2 * rows))
    return 2 * small - large, (large - small) / rows


def activation_peak(spec: ModelSpec, model: MaskedLMTrainingModel, rows: int) -> int:
    """Bytes at the peak of forward and backward of one microbatch of `rows` rows, gradients left out."""
    # Liger's loss holds some logits at a time, as the chunked one does, and cannot run here.
    model.use_loss("full" if spec.config.model.loss_kernel == "full" else "chunked", "cpu")
    model.train()
    loader = spec.loader(rows)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in next(iter(loader)).items()}
    batch = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Gradients are there beforehand, as from the microbatch before: what is added to them is not kept.
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with PeakBytes() as counted:
        model(batch).loss.backward()
    for parameter in parameters:
        parameter.grad = None
    return counted.peak


def optimizer_bytes(config: RunConfig, model: nn.Module) -> int:
    """Bytes of the run's optimizer's state after a step: the real optimizer's, on the tensors of `model`.

    AdamW in 8 bits, which runs on a GPU only, is counted: two bytes per element and two scales of four bytes per block
    of 256, eight bytes in embeddings and tensors below 4096 elements (Dettmers et al. 2021, arXiv 2110.02861).
    """
    if config.optimizer.name == "adamw-8bit":
        return sum(_bits_8(part.parameter.numel(), part.role == "embedding") for part in describe(model))
    optimizer = build_optimizer(config.optimizer, model, config.model.mup_base_width)
    if hasattr(optimizer, "curvature"):
        optimizer.curvature = lambda parameters: [torch.zeros_like(parameter) for parameter in parameters]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return tensor_bytes(leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, torch.Tensor))


def _bits_8(elements: int, embedding: bool) -> int:
    if embedding or elements < _BITS_8_SMALLEST:
        return 8 * elements
    return 2 * elements + 8 * -(-elements // _BITS_8_BLOCK)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the elements of `tensors`, each tensor once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
