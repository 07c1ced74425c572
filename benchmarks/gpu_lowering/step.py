"""A training step of a run, traced without content, with its compiled regions lowered for a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention

from benchmarks.gpu_lowering.graphs import Lowering, Region
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.models.attention_kernels import FlexAttention
from cram_composer.models.crambert.attention import DenseAttention
from cram_composer.models.losses import LOSSES
from cram_composer.planning.run_spec import RunSpec, read_data_facts

YAML = Path(__file__).parents[2] / "yamls" / "cram-1gpu.yaml"


@dataclass(frozen=True)
class Step:
    """The lowered regions of one step: the layers that differ, and the head last."""

    layers: list[Region]
    head: Region
    graph_breaks: int
    rows: int
    length: int
    masked: int
    vocabulary: int

    @property
    def tokens(self) -> int:
        """Tokens of the microbatch."""
        return self.rows * self.length


class _CudaAttention(DenseAttention):
    """The kernel that torch's scaled_dot_product_attention chooses on a GPU, which it does not on a CPU.

    Args:
        capability: before Ampere there is no flash kernel.
    """

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float
    ) -> torch.Tensor:
        """Attend: [B, heads, L, D] -> [B, heads, L, D]."""
        aten = torch.ops.aten
        if mask is None and self._capability >= 80:
            return aten._scaled_dot_product_flash_attention(query, key, value, dropout, False)[0]
        if mask is not None:
            if mask.dtype == torch.bool:
                mask = torch.zeros((), dtype=query.dtype).masked_fill(~mask, float("-inf"))
            mask = mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        return aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, dropout)[0]


def lower_step(overrides: list[str], capability: int, rows: int = 256, yaml: Path = YAML) -> Step:
    """Lower the step of a run with two layers for a GPU; rows of one microbatch. Raises CramError."""
    config = compose(RunConfig, yaml, overrides).config
    train = config.train.model_copy(update={"batch_size": rows, "device_train_microbatch_size": rows})
    shallow = config.model.model_copy(update={"num_hidden_layers": 2})
    spec = RunSpec(config.model_copy(update={"train": train, "model": shallow}), read_data_facts(config.data), 1)
    dtype = torch.bfloat16 if capability >= 80 else torch.float16
    lowering = Lowering(capability, rows)

    def compile_lowering(module: nn.Module, **options: Any) -> None:
        module._compiled_call_impl = torch.compile(module._call_impl, backend=lowering, **options)

    torch._dynamo.reset()
    counters.clear()
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in next(iter(spec.build_loader(rows))).items()}
    with (
        FakeTensorMode(),
        mock.patch.object(nn.Module, "compile", compile_lowering),
        mock.patch.object(flex_attention, "_validate_device", lambda *tensors: None),  # flex has no backward on a CPU
    ):
        model = spec.build_model(dtype, "regional").train()
        model.precompiles = False
        encoder: Any = model.model.encoder
        flex = config.model.attention_kernel == "flex"
        encoder.attention_kernel = FlexAttention(compile=False) if flex else _CudaAttention(capability)
        model.model.head.loss = LOSSES[config.model.loss_kernel]  # type: ignore[union-attr]
        batch = {name: torch.ones(shape, dtype=kind) for name, (shape, kind) in shapes.items()}
        model._forward(batch).loss.backward()  # raises errors of compilation, which its caller catches
    length, masked = batch["input_ids"].shape[1], batch["labels"].shape[1]
    *layers, head = lowering.regions
    return Step(layers, head, sum(counters["graph_break"].values()), rows, length, masked, spec.facts.vocab_size)
