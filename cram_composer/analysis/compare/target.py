"""Test of a group against a target loss: a record counts if its mean is below the target at 1 %."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from cram_composer.analysis.compare.groups import Group

RECORD_LEVEL = 0.01


@dataclass(frozen=True)
class TargetTest:
    """One-sided test that a group's mean final held-out loss, over seeds, is below a target.

    Attributes:
        name: of the group.
        mean: in nats.
        seeds: number of seeds.
        target: in nats.
        p_value: by Student's t, if the mean were the target; None with one seed.
    """

    name: str
    mean: float
    seeds: int
    target: float
    p_value: float | None

    @property
    def holds(self) -> bool:
        """True if the mean is below the target at 1 %."""
        return self.p_value is not None and self.p_value < RECORD_LEVEL

    def __str__(self) -> str:
        found = f"{self.name}: mean held-out loss {self.mean:.4f} nats of {self.seeds} seed{'s' * (self.seeds != 1)}"
        if self.p_value is None:
            return f"{found}; one seed shows nothing about the target {self.target:g}, run four more"
        chance = f"p {'< 0.0001' if self.p_value < 1e-4 else f'= {self.p_value:.4f}'}, one-sided"
        if self.holds:
            return f"{found}, below the target {self.target:g} at 1 % ({chance})"
        return f"{found}, not shown to be below the target {self.target:g} at 1 % ({chance})"


def against_target(group: Group, target: float) -> TargetTest:
    """Test the final held-out losses of a group against `target`; runs of one seed count as one."""
    from scipy import stats  # takes a second to import

    losses = group.final_losses()
    mean = statistics.fmean(losses)
    if len(losses) < 2:
        return TargetTest(group.name, mean, len(losses), target, None)
    error = statistics.stdev(losses) / math.sqrt(len(losses))
    p_value = float(stats.t.cdf((mean - target) / error, len(losses) - 1)) if error else float(mean >= target)
    return TargetTest(group.name, mean, len(losses), target, p_value)
