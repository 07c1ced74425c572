"""The `scaleout` section of a run: how several devices train one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cram_composer.config.schema.fields import choice


@dataclass
class DdpConfig:
    """Every device holds the whole model and optimizer; gradients are averaged."""

    # Gradients are averaged in the last microbatch of a step, or in all of them; Composer's names.
    sync_strategy: str = choice("single_auto_sync", "multi_auto_sync")


@dataclass
class Fsdp2Config:
    """Weights, gradients and optimizer are sharded, layer by layer (torch's `fully_shard`)."""

    reshard_after_forward: bool = True  # False keeps gathered weights for the backward: faster, and more memory
    # On a GPU under bf16: weights and sums are fp32 and autocast does the rest, the numbers of DDP (FULL); weights are
    # gathered and used in bf16 and gradients summed in fp32, which sends half as much (DEFAULT); or everything is bf16
    # (PURE). Composer's names.
    mixed_precision: str = choice("FULL", "DEFAULT", "PURE")


@dataclass
class ScaleoutConfig:
    """`scaleout: fsdp2` is short for `scaleout: {strategy: fsdp2}`; settings of the others are left alone."""

    strategy: str = choice("auto", "ddp", "fsdp2", "deepspeed")  # auto: ddp on several devices
    ddp: DdpConfig = field(default_factory=DdpConfig)
    fsdp2: Fsdp2Config = field(default_factory=Fsdp2Config)
    # DeepSpeed's own configuration, above what this run implies; without a stage, ZeRO-2.
    deepspeed: dict[str, Any] = field(default_factory=dict)
