"""Memory of one training step, measured with tensors without content (torch's FakeTensorMode).

The run's own model and optimizer take a step on the run's own microbatch, and every tensor they create is counted;
nothing is computed or allocated. Sizes are exact for the kernels of a CPU without compilation: scaled-dot-product
attention that keeps no L x L matrix, autocast's rules for a CPU. Compiled layers keep less, because Inductor recomputes
point-wise operations in the backward pass. A model whose control flow depends on its input runs on one and on two real
rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cram_composer.config.schema.run import RunConfig
from cram_composer.models.compilation import encoder_layers
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim.factory import build_optimizer
from cram_composer.optim.parameters import describe_parameters
from cram_composer.planning.run_spec import RunSpec

_EIGHT_BIT_MIN_ELEMENTS = 4096  # elements: bitsandbytes keeps the moments of smaller tensors in fp32
_EIGHT_BIT_BLOCK = 256  # elements that share a scale in fp32


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device without sharding.

    `activations` is the peak of what a microbatch creates in forward and backward: activations, logits and temporaries,
    without gradients. It consists of `activations_fixed` (mainly weights in the dtype of autocast) plus
    `activations_row` per row.
    """

    parameters: int  # number of parameters
    weights: int
    gradients: int
    optimizer: int
    averages: int  # copies of the weights that algorithms keep on the device
    averages_host: int  # such copies in host memory
    largest_layer: int  # bytes of its weights
    outside_layers: int  # bytes of weights: embeddings, head
    activations_fixed: float
    activations_row: float

    def activations(self, rows: int) -> float:
        """Return the bytes for a microbatch of `rows` rows."""
        return self.activations_fixed + self.activations_row * rows


class PeakBytes(TorchDispatchMode):
    """Count the peak bytes of tensors created in this context; each storage counts once, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf.untyped_storage()) not in before:  # not a view or in place
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


def measure_step_memory(spec: RunSpec, precision: str) -> StepMemory:
    """Measure one step of a run in `precision`: bf16, fp16 or fp32. Raises CramError."""
    config = spec.config
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    fixed, row = _measure_activations(spec, dtype)
    with FakeTensorMode():
        model = spec.build_model(dtype)
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


def _measure_activations(spec: RunSpec, dtype: torch.dtype | None) -> tuple[float, float]:
    """Return the fixed activation bytes and those per row, from two microbatch sizes."""
    rows = spec.config.train.microbatch
    try:
        with FakeTensorMode():
            small, large = (measure_activation_peak(spec, spec.build_model(dtype), count) for count in (rows, 2 * rows))
    except DataDependentOutputException:  # some transformers models branch on their masks: compute with few rows
        rows = 1
        small, large = (measure_activation_peak(spec, spec.build_model(dtype), count) for count in (rows, 2 * rows))
    return 2 * small - large, (large - small) / rows


def measure_activation_peak(spec: RunSpec, model: MaskedLMTrainingModel, rows: int) -> int:
    """Return the peak bytes of forward and backward of a microbatch of `rows` rows, without gradients."""
    # Liger's loss holds as many logits at a time as the chunked one, but cannot run on fake tensors.
    model.use_loss("full" if spec.config.model.loss_kernel == "full" else "chunked", "cpu")
    model.train()
    loader = spec.build_loader(rows)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in next(iter(loader)).items()}
    batch = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Gradients exist beforehand, as after an earlier microbatch, so they do not count.
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    with PeakBytes() as counted:
        model(batch).loss.backward()
    for parameter in parameters:
        parameter.grad = None
    return counted.peak


def optimizer_bytes(config: RunConfig, model: nn.Module) -> int:
    """Return the bytes of the optimizer's state after a step of the real optimizer on the tensors of `model`.

    8-bit AdamW, which runs on a GPU only, is calculated: two bytes per element and two scales of four bytes per block
    of 256; eight bytes per element in embeddings and tensors below 4096 elements (Dettmers et al. 2021, arXiv
    2110.02861).
    """
    if config.optimizer.name == "adamw-8bit":
        return sum(
            _state_bytes_8bit(part.parameter.numel(), part.role == "embedding") for part in describe_parameters(model)
        )
    optimizer = build_optimizer(config.optimizer, model, config.model.mup_base_width)
    if hasattr(optimizer, "curvature"):
        optimizer.curvature = lambda parameters: [torch.zeros_like(parameter) for parameter in parameters]
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return tensor_bytes(leaf for leaf in tree_leaves(list(optimizer.state.values())) if isinstance(leaf, torch.Tensor))


def _state_bytes_8bit(elements: int, embedding: bool) -> int:
    if embedding or elements < _EIGHT_BIT_MIN_ELEMENTS:
        return 8 * elements
    return 2 * elements + 8 * -(-elements // _EIGHT_BIT_BLOCK)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return the bytes of the elements of `tensors`, counting each tensor once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
