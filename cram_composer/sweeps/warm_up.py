"""Short runs before a sweep, which leave compiled kernels in the cache.

Compilation counts in a budget, and a cache that an earlier run filled makes it ten times as short. Without warm-up, the
first runs of a sweep pay for the others, and a variant with shapes of its own pays alone.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.sweeps.plan import Trial, override

_FOLDER = ".warm-up"
_SETTINGS = ["eval.interval=0.0", "export.enabled=false", "runs_remote=null", "train.early_stop=null"]


@contextlib.contextmanager
def warm_up_trials(left: Sequence[Trial], steps: int, folder: Path) -> Iterator[list[Trial]]:
    """Plan a run of `steps` steps of each variant in `left`, in a part of `folder` that is deleted in the end.

    Schedules and ramps follow the progress, so a few steps meet every shape of the run.
    """
    place = folder / _FOLDER
    # The last value of a key counts: a variant may set these itself.
    ends = [override("budget", {"steps": steps}), *_SETTINGS, override("runs_dir", str(place))]
    shutil.rmtree(place, ignore_errors=True)
    try:
        yield [
            Trial(
                trial.variant,
                trial.seed,
                place / trial.path.name,
                trial.yaml,
                [*trial.overrides, *ends],
                compose(RunConfig, trial.yaml, [*trial.overrides, *ends]),
            )
            for trial in {trial.variant: trial for trial in reversed(left)}.values()
        ]
    finally:
        shutil.rmtree(place, ignore_errors=True)
