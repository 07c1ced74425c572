"""The `algorithms` section: one class per algorithm; null switches it off."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from cram_composer.config.schema.base import Settings, Share, key


class GradientClippingConfig(Settings):
    """Gradient clipping by norm, by value, or adaptive (Brock et al. 2021, arXiv 2102.06171)."""

    clipping_type: Literal["norm", "value", "adaptive"] = key("norm", "quantity to limit")
    clipping_threshold: float = key(
        0.5, "largest norm or value; adaptive: ratio of gradient norm to weight norm, per row", ge=1e-12, le=1e30
    )


class SeqLengthWarmupConfig(Settings):
    """Sequence-length warmup (Li et al. 2021, arXiv 2108.06084)."""

    duration: Share = key(0.3, "share of the budget until full length")
    min_seq_length: PositiveInt = key(32, "tokens per row at the start", le=131_072)
    step_size: PositiveInt = key(32, "with truncate: lengths are multiples of this", le=131_072)
    truncate: bool = key(False, "cut rows, losing tokens; false reshapes a row into several")


class BatchSizeRampConfig(Settings):
    """Linear growth of the batch in multiples of its first size (Cramming, section 4.3)."""

    initial_batch_size: PositiveInt | None = key(
        None, "rows over all devices at the start; null: a 32nd of train.batch_size, at least 16", le=2**20
    )
    until: Share = key(0.6, "progress at which train.batch_size is reached")


class LabelSmoothingConfig(Settings):
    """Label smoothing of the training loss."""

    smoothing: float = key(0.1, "probability spread over all tokens", ge=0.0, le=0.99)


class StochasticDepthConfig(Settings):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382)."""

    stochastic_method: Literal["block", "sample"] = key(
        "block", "drop a layer for the whole step, which saves time, or row by row"
    )
    drop_rate: float = key(0.2, "drop rate of the last layer", ge=0.0, le=0.99)
    drop_distribution: Literal["linear", "uniform"] = key("linear", "how the drop rate grows with depth")
    drop_warmup: Share = key(0.0, "share of the budget over which the rate grows from 0")


class LayerFreezingConfig(Settings):
    """Layer freezing from the bottom up (Raghu et al. 2017, arXiv 1706.05806)."""

    freeze_start: Share = key(0.5, "progress at which freezing begins")
    freeze_level: Share = key(1.0, "share of the layers frozen at the end of the budget")


class SamConfig(Settings):
    """Sharpness-aware minimisation (Foret et al. 2020, arXiv 2010.01412)."""

    rho: NonNegativeFloat = key(0.05, "distance at which the gradient is taken", le=1e3)
    epsilon: NonNegativeFloat = key(1e-12, "added to the norm of the gradient", le=1.0)
    interval: PositiveInt = key(1, "optimizer steps between two SAM steps", le=10**9)


class EmaConfig(Settings):
    """Exponential moving average of the weights, for evaluation and export."""

    half_life: float = key(0.01, "share of the budget", ge=1e-9, le=1.0)
    update_interval: PositiveInt = key(1, "optimizer steps between two updates", le=10**9)


class SwaConfig(Settings):
    """Stochastic weight averaging (Izmailov et al. 2018, arXiv 1803.05407), for evaluation and export."""

    swa_start: Share = key(0.75, "progress at which averaging begins")
    update_interval: float = key(0.005, "share of the budget between two snapshots", ge=1e-6, le=1.0)
    schedule_swa_lr: bool = key(False, "hold the learning rate from swa_start on")


class LawaConfig(Settings):
    """Latest weight averaging (Kaddour 2022, arXiv 2209.14981), for evaluation and export."""

    k: int = key(6, "snapshots in the average", ge=2, le=1000)
    update_interval: float = key(0.005, "share of the budget between two snapshots", ge=1e-6, le=1.0)

    @model_validator(mode="after")
    def _check_snapshots(self) -> LawaConfig:
        if self.k * self.update_interval > 1.0:
            raise ValueError(
                f"k: {self.k} snapshots every {self.update_interval:g} of the budget would need more than the budget; "
                "lower k or update_interval"
            )
        return self


class FusedLayerNormConfig(Settings):
    """LayerNorm and RMSNorm by fused CUDA kernels; has no settings."""


class LowPrecisionLayerNormConfig(Settings):
    """LayerNorm and RMSNorm in the dtype of autocast; has no settings."""


class AlgorithmsConfig(Settings):
    """Algorithms that act during training; null switches one off, `{}` switches it on with defaults."""

    gradient_clipping: GradientClippingConfig | None = key(None, "limit the gradient of a step")
    seq_length_warmup: SeqLengthWarmupConfig | None = key(None, "train on short rows first")
    batch_size_ramp: BatchSizeRampConfig | None = key(None, "start with small batches")
    label_smoothing: LabelSmoothingConfig | None = key(None, "smooth the targets of the loss")
    stochastic_depth: StochasticDepthConfig | None = key(None, "drop layers at random in training")
    layer_freezing: LayerFreezingConfig | None = key(None, "stop training the lowest layers")
    sam: SamConfig | None = key(None, "use the gradient at the worst nearby point")
    ema: EmaConfig | None = key(None, "average the weights exponentially")
    swa: SwaConfig | None = key(None, "average the weights of the last part of the budget")
    lawa: LawaConfig | None = key(None, "average the latest weights")
    fused_layernorm: FusedLayerNormConfig | None = key(None, "compute norms by fused CUDA kernels")
    low_precision_layernorm: LowPrecisionLayerNormConfig | None = key(None, "compute norms in the dtype of autocast")
