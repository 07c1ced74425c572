"""The starts of a run: what each of them spent, and what a kill or a rollback made lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.budget.ledger import Ledger
from cram_composer.runs.checkpoints import SavedCheckpoint
from cram_composer.runs.folder import RunFolder
from cram_composer.scaleout.strategy import Strategy
from cram_composer.train.checkpointing import load_state, restore_weights
from cram_composer.train.session import Session


class Attempt:
    """One start of a run: its steps, and its wall-clock by a clock that is not the ledger's."""

    def __init__(self, built: Session) -> None:
        self._run = built
        self._started = 0.0
        self._entry: dict[str, Any] = {
            "started_at_step": int(built.trainer.state.timestamp.batch),
            "spent_before": built.ledger.elapsed(),
            "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "world_size": dist.get_world_size(),
        }
        if built.attempts and "reason" not in built.attempts[-1]:
            built.attempts[-1].update(ended_at_step=self._entry["started_at_step"], reason="killed")
        built.attempts.append(self._entry)

    def start(self) -> None:
        """The loop begins."""
        self._started = time.perf_counter()

    def close(self, reason: str) -> None:
        """The loop is over: stop the clock and note how it ended."""
        wall = time.perf_counter() - self._started
        step = int(self._run.trainer.state.timestamp.batch)
        self._run.clock.close_clock()
        self._run.heartbeat.stop()
        self._entry.update(ended_at_step=step, reason=reason, wall_seconds=wall)
        if dist.get_global_rank() == 0:
            # An interrupted run saved its last step; whatever follows a failure's last checkpoint is lost.
            self._run.folder.write_clock(self._run.ledger, step, clean=reason == "interrupted")


def restore_ledger(ledger: Ledger, folder: RunFolder, saved: SavedCheckpoint | None) -> None:
    """Take over what earlier starts of this run spent; what came after the checkpoint is lost, and counts."""
    clock = folder.read_clock()
    kept: dict[str, float] = {}
    if saved is not None:
        kept = load_state(saved.path)["callbacks"]["BudgetCallback"]["inside"]
        if clock is not None and clock["clean"] and clock["step"] == saved.step:
            kept = clock["inside"]
    spent = sum(clock["inside"].values()) if clock is not None else 0.0
    ledger.restore(kept, lost=max(0.0, spent - sum(kept.values())))


def rollback_to_checkpoint(folder: RunFolder, ledger: Ledger, strategy: Strategy) -> Callable[[State, Logger], bool]:
    """What the non-finite guard calls: back to the last checkpoint's weights, the time since then being lost."""

    def rollback(state: State, logger: Logger) -> bool:
        loaded = restore_weights(state, logger, folder.checkpoints, strategy)
        if loaded is None:
            return False
        spent, kept = ledger.elapsed(), loaded["callbacks"]["BudgetCallback"]["inside"]
        # The phase that is open goes on counting in a restored ledger, so its seconds are kept and not lost.
        ledger.restore(kept, lost=0.0)
        ledger.restore(kept, lost=max(0.0, spent - ledger.elapsed()))
        return True

    return rollback
