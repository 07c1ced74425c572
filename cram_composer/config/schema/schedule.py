"""The `schedule` section: one class per learning-rate schedule, each a function of budget progress."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import PositiveInt, model_validator

from cram_composer.config.schema.base import Settings, Share, chosen_by_name, key

_START = "factor of the peak rate at progress 0"
_PEAK_AT = "progress of the peak"


class Schedule(Settings):
    """Settings of every schedule."""

    KEPT: ClassVar[tuple[str, ...]] = ()  # kept when a later layer chooses another schedule

    name: str
    start: Share = key(0.0, _START)

    @model_validator(mode="after")
    def _check_phases(self) -> Schedule:
        warmup, decay = getattr(self, "warmup", 0.0), getattr(self, "decay", 0.0)
        if warmup + decay > 1.0:
            raise ValueError(f"warmup + decay must be <= 1, got {warmup} + {decay}")
        return self


class _WithEnd(Schedule):
    """A schedule that decays."""

    final: Share = key(0.0, "factor of the peak rate at progress 1")


class _WithWarmup(_WithEnd):
    """A schedule with a linear warmup and a decay."""

    warmup: Share = key(0.06, "share of the budget spent warming up")


class TriangleConfig(_WithEnd):
    """Linear rise to the peak, then linear decay (Cramming, arXiv 2212.14034, section 4.3)."""

    name: Literal["triangle"] = "triangle"
    start: Share = key(0.25, _START)
    peak_at: Share = key(0.75, _PEAK_AT)


class OneCycleConfig(_WithEnd):
    """Cosine rise to the peak, then cosine decay (Smith and Topin 2018, arXiv 1708.07120)."""

    name: Literal["one-cycle"] = "one-cycle"
    start: Share = key(0.04, _START)
    peak_at: Share = key(0.3, _PEAK_AT)


class LinearConfig(_WithWarmup):
    """Linear warmup, linear decay (Devlin et al. 2018, arXiv 1810.04805, appendix A.2)."""

    name: Literal["linear"] = "linear"


class PolynomialConfig(_WithWarmup):
    """Linear warmup, polynomial decay."""

    name: Literal["polynomial"] = "polynomial"
    power: float = key(1.0, "exponent of the decay", ge=0.01, le=10.0)


class CosineConfig(_WithWarmup):
    """Linear warmup, cosine decay (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5)."""

    name: Literal["cosine"] = "cosine"


class CosineRestartsConfig(_WithWarmup):
    """Linear warmup, cosine decays that restart from the peak (arXiv 1608.03983, section 3)."""

    name: Literal["cosine-restarts"] = "cosine-restarts"
    cycles: PositiveInt = key(4, "number of cosine decays", le=10**6)


class InverseCosineConfig(_WithEnd):
    """Cosine rise, then a linear decay."""

    name: Literal["inverse-cosine"] = "inverse-cosine"
    decay: Share = key(0.25, "share of the budget spent decaying")


class MultiCycleConfig(_WithEnd):
    """Consecutive triangles (Smith 2017, arXiv 1506.01186)."""

    name: Literal["multi-cycle"] = "multi-cycle"
    cycles: PositiveInt = key(8, "number of triangles", le=10**6)


class ConstantConfig(Schedule):
    """Linear warmup, then the constant peak rate."""

    name: Literal["constant"] = "constant"
    warmup: Share = key(0.0, "share of the budget spent warming up")


class InverseSqrtConfig(_WithWarmup):
    """Linear warmup, sqrt(warmup / progress), optional linear decay (Vaswani et al. 2017, equation 3)."""

    name: Literal["inverse-sqrt"] = "inverse-sqrt"
    decay: Share = key(0.0, "share of the budget spent decaying at the end; with 0, `final` has no effect")


class WsdConfig(_WithWarmup):
    """Warmup, stable, decay (Hu et al. 2024, arXiv 2404.06395, section 4)."""

    name: Literal["wsd"] = "wsd"
    warmup: Share = key(0.05, "share of the budget spent warming up")
    decay: Share = key(0.2, "share of the budget spent decaying")
    decay_shape: Literal["linear", "1-sqrt"] = key("linear", "1-sqrt: Haegele et al. 2024, section 3")


if TYPE_CHECKING:
    ScheduleConfig = Schedule
else:
    ScheduleConfig = chosen_by_name(Schedule)
