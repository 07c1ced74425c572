"""Short runs before a sweep, which leave compiled kernels in the cache.

Compilation counts in a budget, and a cache that an earlier run filled makes it ten times as short. Without warm-up, the
first runs of a sweep pay for the others, and a variant with shapes of its own pays alone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cram_composer.config.schema.run import BudgetConfig
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.sweeps.plan import Trial, plan_trials

_FOLDER = ".warm-up"
# Schedules and ramps follow the progress, so that a few steps meet every shape of the run.
_SETTINGS = {"eval.interval": 0.0, "export.enabled": False, "runs_remote": None}


@contextlib.contextmanager
def warm_up_trials(config: SweepConfig, asked_by: str, folder: Path, left: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Plan a run of `warm_up_steps` steps of each variant in `left`, in a folder that is deleted in the end."""
    variants = {trial.variant for trial in left}
    short = config.model_copy(
        update={
            "budget": BudgetConfig(steps=config.warm_up_steps),
            "seeds": 1,
            "set": {**config.set, **_SETTINGS},
        }
    )
    place = folder / _FOLDER
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield [trial for trial in plan_trials(short, asked_by, place) if trial.variant in variants]
    finally:
        shutil.rmtree(place, ignore_errors=True)
