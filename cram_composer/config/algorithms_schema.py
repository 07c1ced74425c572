"""The `algorithms` section of a run."""

from __future__ import annotations

from dataclasses import dataclass

from cram_composer.config.fields import choice, number


@dataclass
class GradientClippingConfig:
    """Composer's GradientClipping."""

    clipping_type: str = choice("norm", "value", "adaptive")
    clipping_threshold: float = number(0.5, 1e-12)


@dataclass
class SeqLengthWarmupConfig:
    """Short rows first, over the first `duration` of the budget."""

    duration: float = number(0.3, 0.0, 1.0)
    min_seq_length: int = number(32, 1)
    max_seq_length: int | None = number(None, 1)  # default: the data's
    step_size: int = number(32, 1)
    truncate: bool = False  # False reshapes a row into several, losing no token; True keeps each row's head


@dataclass
class BatchSizeRampConfig:
    """Linear growth of the batch in whole microbatches."""

    initial_batch_size: int | None = number(None, 1)  # rows over all devices; default: one microbatch per device
    until: float = number(0.6, 0.0, 1.0)  # progress at which `train.batch_size` is reached


@dataclass
class EmaConfig:
    """Exponential moving average of the weights, used for evaluation and export."""

    half_life: float = number(0.01, 1e-9, 1.0)  # share of the budget
    update_interval: int = number(1, 1)  # optimizer steps


@dataclass
class FusedLayerNormConfig:
    """LayerNorm by a fused CUDA kernel; has no settings."""


@dataclass
class AlgorithmsConfig:
    """Algorithms that are switched on; null is off."""

    gradient_clipping: GradientClippingConfig | None = None
    seq_length_warmup: SeqLengthWarmupConfig | None = None
    batch_size_ramp: BatchSizeRampConfig | None = None
    ema: EmaConfig | None = None
    fused_layernorm: FusedLayerNormConfig | None = None
