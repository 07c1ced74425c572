"""The `scaleout` section: training of one model on several devices."""

from __future__ import annotations

from typing import Any, Literal

from cram_composer.config.schema.base import Settings, key


class DdpConfig(Settings):
    """DDP: every device holds the whole model and optimizer; gradients are averaged."""

    sync_strategy: Literal["single_auto_sync", "multi_auto_sync"] = key(
        "single_auto_sync", "average gradients in the last microbatch of a step, or in all (Composer's names)"
    )


class Fsdp2Config(Settings):
    """FSDP2: weights, gradients and optimizer are sharded layer by layer (torch's `fully_shard`)."""

    reshard_after_forward: bool = key(True, "false keeps gathered weights: faster, more memory")
    mixed_precision: Literal["FULL", "DEFAULT", "PURE"] = key(
        "FULL",
        "on a GPU under bf16. FULL: fp32 weights and sums, as DDP; DEFAULT: bf16 weights, fp32 sums, half of the "
        "traffic; PURE: all bf16 (Composer's names)",
    )


class ScaleoutConfig(Settings):
    """`scaleout: fsdp2` is short for `scaleout: {strategy: fsdp2}`; settings of other strategies are unused."""

    strategy: Literal["auto", "ddp", "fsdp2", "deepspeed"] = key("auto", "auto: ddp on several devices")
    ddp: DdpConfig = key(DdpConfig, "settings of DDP")
    fsdp2: Fsdp2Config = key(Fsdp2Config, "settings of FSDP2")
    deepspeed: dict[str, Any] = key(
        dict, "DeepSpeed configuration, merged over the values implied by the run; default ZeRO-2"
    )
