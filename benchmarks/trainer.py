"""Step time with the engine of cram_composer/train/trainer.py and with Composer's engine, alternating.

python -m benchmarks.trainer data.local=DATA

One run switches the engine after every block of steps; each ratio compares adjacent blocks.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from composer.core import Callback, State
from composer.loggers import Logger

from benchmarks.short_run import STEADY, arguments, build_run, spread

_WARM_UP = 5  # steps that compile


class Turns(Callback):
    """Callback that switches the engine after each block and records the seconds per step."""

    def __init__(self, steps: int, trainer: Any) -> None:
        self._steps = steps
        self._trainer = trainer
        self._since: float | None = None
        self.seconds: tuple[list[float], list[float]] = ([], [])

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Switch at the end of a block."""
        block, rest = divmod(int(state.timestamp.batch) - _WARM_UP, self._steps)
        if rest or block < 0:
            return
        now = time.perf_counter()
        if self._since is not None:
            self.seconds[(block - 1) % 2].append((now - self._since) / self._steps)
        self._trainer.engine.enabled = block % 2 == 0
        self._since = time.perf_counter()


def main() -> None:
    options = arguments(__doc__, steps=10, rounds=30).parse_args()
    total = _WARM_UP + 2 * options.steps * options.rounds
    with tempfile.TemporaryDirectory() as scratch:
        settings = [*STEADY, f"budget={{wall: null, steps: {total}}}", *options.overrides]
        run, _ = build_run(options.yaml, settings, Path(scratch) / "run")
        turns = Turns(options.steps, run.trainer)
        run.trainer.state.callbacks.append(turns)  # after the clock, whose reading ends a step
        run.trainer.fit()
    ratios = [a / b for a, b in zip(*turns.seconds, strict=True)]
    milliseconds = [spread([1000 * seconds for seconds in side], ".1f") for side in turns.seconds]
    print(f"{milliseconds[0]} ms per step, Composer's engine {milliseconds[1]}; ratio {spread(ratios, '.3f')}")


if __name__ == "__main__":
    main()
