"""Progress through a budget: wall-clock, tokens, steps or epochs against their limits, or an earlier run's trace."""

from __future__ import annotations

from dataclasses import dataclass

from cram_composer.budget.trace import TraceStep, read_trace
from cram_composer.config.paths import expand
from cram_composer.config.schema.run import BudgetConfig
from cram_composer.config.units import parse_duration


@dataclass(frozen=True)
class Limits:
    """Limits of a budget; None means unlimited."""

    seconds: float | None = None
    tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None


class Budget:
    """Progress through the budget, which every schedule reads.

    In a replay, the progress of each step is read from the trace instead of the clock, so that the same decisions fall
    on the same steps. The run ends with the trace.

    Attributes:
        limits: the limits.
        replay: the trace to replay, or None.
        elapsed: seconds spent.
        progress: the largest used share of any limit, in [0, 1].
        exhausted: True if no step is left.
    """

    def __init__(self, limits: Limits, replay: list[TraceStep] | None = None) -> None:
        self.limits = limits
        self.replay = replay
        self.elapsed = 0.0
        self.progress = 0.0
        self.exhausted = False

    def advance(self, elapsed: float, tokens: int, steps: int, epochs: float = 0.0) -> None:
        """Update to the amounts spent before step `steps` (0-based)."""
        self.elapsed = elapsed
        if self.replay is not None:
            self.exhausted = steps >= len(self.replay)
            self.progress = 1.0 if self.exhausted else self.replay[steps].progress
            return
        used = [
            spent / limit
            for spent, limit in (
                (elapsed, self.limits.seconds),
                (tokens, self.limits.tokens),
                (steps, self.limits.steps),
                (epochs, self.limits.epochs),
            )
            if limit is not None
        ]
        self.progress = min(1.0, max(used))
        self.exhausted = self.progress >= 1.0

    def describe(self) -> dict[str, object]:
        """Return the budget in the format of record.json."""
        mode = "replay" if self.replay is not None else "wall" if self.limits.seconds is not None else "count"
        return {
            "mode": mode,
            "seconds": self.limits.seconds,
            "tokens": self.limits.tokens,
            "steps": len(self.replay) if self.replay is not None else self.limits.steps,
            "epochs": self.limits.epochs,
        }


def build_budget(config: BudgetConfig, world_size: int) -> Budget:
    """Build the budget of `config`; `world_size` devices share device-hours evenly."""
    if config.replay is not None:
        return Budget(Limits(), read_trace(expand(config.replay)))
    clocks = []
    if config.wall is not None:
        clocks.append(parse_duration(config.wall))
    if config.device_hours is not None:
        clocks.append(config.device_hours * 3600.0 / world_size)
    tokens = int(config.tokens) if config.tokens else None
    return Budget(Limits(min(clocks, default=None), tokens, config.steps, config.epochs))
