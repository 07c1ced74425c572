"""The `algorithms` section of a run."""

from __future__ import annotations

from dataclasses import dataclass

from cram_composer.config.schema.fields import choice, number


@dataclass
class GradientClippingConfig:
    """Composer's GradientClipping; its adaptive kind after the paper."""

    clipping_type: str = choice("norm", "value", "adaptive")
    clipping_threshold: float = number(0.5, 1e-12)  # adaptive: share of a row's weights that its gradient may have


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
class SwaConfig:
    """Stochastic weight averaging, used for evaluation and export."""

    swa_start: float = number(0.75, 0.0, 1.0)  # progress at which averaging begins
    update_interval: float = number(0.005, 1e-6, 1.0)  # share of the budget between the weights that are averaged
    schedule_swa_lr: bool = False  # keep the learning rate from swa_start on


@dataclass
class LawaConfig:
    """Latest weight averaging, used for evaluation and export."""

    k: int = number(6, 2)
    update_interval: float = number(0.005, 1e-6, 1.0)  # share of the budget between the weights that are averaged


@dataclass
class SamConfig:
    """Sharpness-aware minimization."""

    rho: float = number(0.05, 0.0)  # distance at which the gradient is taken
    epsilon: float = number(1e-12, 0.0)
    interval: int = number(1, 1)  # optimizer steps


@dataclass
class LabelSmoothingConfig:
    """Smoothing of the targets of the training loss."""

    smoothing: float = number(0.1, 0.0, 0.99)


@dataclass
class StochasticDepthConfig:
    """Layers left out at random in training."""

    stochastic_method: str = choice("block", "sample")  # for the whole step, which saves time, or row by row
    drop_rate: float = number(0.2, 0.0, 0.99)  # of the last layer
    drop_distribution: str = choice("linear", "uniform")  # over depth
    drop_warmup: float = number(0.0, 0.0, 1.0)  # share of the budget over which the rates grow from 0


@dataclass
class LayerFreezingConfig:
    """The lowest layers stop being trained."""

    freeze_start: float = number(0.5, 0.0, 1.0)  # progress at which it begins
    freeze_level: float = number(1.0, 0.0, 1.0)  # share of the layers that are frozen at the end of the budget


@dataclass
class FusedLayerNormConfig:
    """LayerNorm and RMSNorm by fused CUDA kernels; has no settings."""


@dataclass
class LowPrecisionLayerNormConfig:
    """LayerNorm and RMSNorm in the dtype of autocast; has no settings."""


@dataclass
class AlgorithmsConfig:
    """Algorithms that are switched on; null is off."""

    gradient_clipping: GradientClippingConfig | None = None
    seq_length_warmup: SeqLengthWarmupConfig | None = None
    batch_size_ramp: BatchSizeRampConfig | None = None
    label_smoothing: LabelSmoothingConfig | None = None
    stochastic_depth: StochasticDepthConfig | None = None
    layer_freezing: LayerFreezingConfig | None = None
    sam: SamConfig | None = None
    ema: EmaConfig | None = None
    swa: SwaConfig | None = None
    lawa: LawaConfig | None = None
    fused_layernorm: FusedLayerNormConfig | None = None
    low_precision_layernorm: LowPrecisionLayerNormConfig | None = None
