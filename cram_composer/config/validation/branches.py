"""Checks of a trunk: a run from whose checkpoints `cram branch` continues with a decaying learning rate."""

from __future__ import annotations

from typing import Any

from cram_composer.config.layers import flatten
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.schedule import ConstantConfig, ScheduleConfig, WsdConfig
from cram_composer.errors import ConfigError

RAMP_ENDS = {  # settings that are constant after this share of the budget
    "algorithms.batch_size_ramp": "until",
    "algorithms.seq_length_warmup": "duration",
    "algorithms.stochastic_depth": "drop_warmup",
}
_PROGRESS_DEPENDENT = {  # settings whose value at a step depends on the budget
    "algorithms.ema": "ema",
    "algorithms.swa": "swa",
    "algorithms.lawa": "lawa",
    "algorithms.layer_freezing": "layer-freezing",
    "objective.final_mlm_probability": "mask-schedule",
    "objective.final_masking": "masking",
    "objective.final_causal_fraction": "the share of causal rows",
    "data.curriculum": "a curriculum",
}


def check_branch_points(config: RunConfig) -> None:
    """Check that a branch can leave the run at every point of `checkpoint.branch_at`. Raises ConfigError."""
    points = config.checkpoint.branch_at
    if not points:
        return
    named = [name for name, limit in config.budget if limit is not None]
    limits = {"wall" if name == "device_hours" else name for name in named}  # both are limits of time
    if len(limits) != 1 or "replay" in limits:
        raise ConfigError(
            "checkpoint.branch_at: a branch needs exactly one budget limit: wall, device_hours, tokens, steps or epochs"
        )
    values = config.model_dump(mode="json")
    for point in points:
        try:
            check_constant_rate(config.schedule, point, "checkpoint.branch_at")
            check_progress_dependent(values, point)
        except ConfigError as error:
            raise ConfigError(f"{error}; or set checkpoint.branch_at=[]") from None


def check_constant_rate(schedule: ScheduleConfig, progress: float, where: str) -> None:
    """Raise ConfigError unless the rate at `progress` is the peak, after the warmup and before any decay."""
    if not isinstance(schedule, ConstantConfig | WsdConfig):
        raise ConfigError(
            f"schedule.name: a branch needs a trunk with a constant rate, got '{schedule.name}'; train the trunk "
            "with the recipe schedule-constant or schedule-wsd"
        )
    end = 1.0 - schedule.decay if isinstance(schedule, WsdConfig) else 1.0
    if not schedule.warmup <= progress <= end:
        raise ConfigError(
            f"{where}: must be between {schedule.warmup:.0%} and {end:.0%} of the trunk's budget, where its rate is "
            f"constant, got {progress:.1%}"
        )


def check_progress_dependent(config: dict[str, Any], before: float, after: float | None = None) -> None:
    """Raise ConfigError for settings that would jump at a branch because they depend on budget progress.

    Args:
        config: configuration of the trunk.
        before: where the branch starts, as a share of the trunk's budget.
        after: the same place as a share of the branch's budget; None if that is not yet known.
    """
    values = flatten(config)
    for key, name in _PROGRESS_DEPENDENT.items():
        if any(value not in (None, [], {}) for other, value in values.items() if f"{other}.".startswith(f"{key}.")):
            raise ConfigError(
                f"{key}: {name} is scheduled by budget fraction, so a branch would differ from a full run; remove it"
            )
    for key, name in RAMP_ENDS.items():
        until = values.get(f"{key}.{name}")
        if until is not None and until > min(before, before if after is None else after):
            own = "" if after is None else f" and {after:.1%} of its own budget"
            raise ConfigError(
                f"{key}: ends at {until:.0%} of the budget, but a branch starts at {before:.1%} of the trunk's{own}; "
                f"set {key}=null for the trunk"
            )
