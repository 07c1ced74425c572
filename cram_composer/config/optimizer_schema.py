"""The `optimizer` and `schedule` sections of a run."""

from __future__ import annotations

from dataclasses import dataclass, field

from cram_composer.config.fields import choice, number


@dataclass
class OptimizerConfig:
    """The optimizer; `lr` is the peak the schedule multiplies."""

    name: str = choice("adamw")
    lr: float = number(1e-3, 0.0)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    eps: float = number(1e-12, 0.0)
    weight_decay: float = number(0.01, 0.0)


@dataclass
class ScheduleConfig:
    """Learning rate as a pure function of budget progress; a key its schedule does not read is refused."""

    name: str = choice("triangle", "one-cycle", "linear", "cosine", "constant", "inverse-sqrt", "wsd")
    start: float | None = number(None, 0.0, 1.0)  # factor at progress 0
    peak_at: float | None = number(None, 0.0, 1.0)  # progress of the peak
    warmup: float | None = number(None, 0.0, 1.0)  # share of the budget spent rising from `start` to the peak
    decay: float | None = number(None, 0.0, 1.0)  # share of the budget spent falling to `final`
    final: float | None = number(None, 0.0, 1.0)  # factor at progress 1
