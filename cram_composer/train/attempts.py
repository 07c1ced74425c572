"""Attempts of a run: the budget that each one spent, and the time lost to kills and rollbacks."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.algorithms.nonfinite_guard import NonFiniteGuard
from cram_composer.budget.ledger import Ledger
from cram_composer.config.schema.run import RunConfig
from cram_composer.runs.checkpoints import SavedCheckpoint
from cram_composer.runs.folder import RunFolder
from cram_composer.scaleout.strategy import Strategy
from cram_composer.train.checkpointing import load_state, restore_weights
from cram_composer.train.session import Session


class Attempt:
    """One attempt at a run: its steps, and its wall-clock time measured independently of the ledger."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._started = 0.0
        self._entry: dict[str, Any] = {
            "started_at_step": int(session.trainer.state.timestamp.batch),
            "spent_before": session.ledger.elapsed(),
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "world_size": dist.get_world_size(),
        }
        if session.attempts and "reason" not in session.attempts[-1]:
            session.attempts[-1].update(ended_at_step=self._entry["started_at_step"], reason="killed")
        session.attempts.append(self._entry)

    def start(self) -> None:
        """Record the start of the loop."""
        self._started = time.perf_counter()

    def close(self, reason: str, saved: bool) -> None:
        """Stop the clocks and record the reason for the end of the loop; `saved`: the last step has a checkpoint."""
        wall = time.perf_counter() - self._started
        step = int(self._session.trainer.state.timestamp.batch)
        self._session.callbacks.stop_clocks()
        self._entry.update(ended_at_step=step, reason=reason, wall_seconds=wall)
        if dist.get_global_rank() == 0:
            # Without a checkpoint of the last step, the time since the last checkpoint is lost.
            self._session.folder.write_clock(self._session.ledger, step, clean=saved)


def restore_ledger(
    ledger: Ledger, folder: RunFolder, saved: SavedCheckpoint | None, previous: dict[str, Any] | None
) -> None:
    """Continue the ledger of earlier attempts; time spent after the checkpoint `saved` counts as lost.

    `previous` is the record of those attempts, whose seconds outside the budget are added.
    """
    for phase, seconds in (previous or {}).get("ledger", {}).get("outside", {}).items():
        ledger.outside[phase] += seconds
    clock = folder.read_clock()
    kept: dict[str, float] = {}
    if saved is not None:
        kept = load_state(saved.path)["callbacks"]["BudgetCallback"]["inside"]
        if clock is not None and clock["clean"] and clock["step"] == saved.step:
            kept = clock["inside"]
    spent = sum(clock["inside"].values()) if clock is not None else 0.0
    ledger.restore(kept, lost=max(0.0, spent - sum(kept.values())))


def rollback_to_checkpoint(folder: RunFolder, ledger: Ledger, strategy: Strategy) -> Callable[[State, Logger], bool]:
    """Build the rollback of the non-finite guard.

    The returned function restores the weights of the last checkpoint and counts the time since then as lost. It returns
    False if there is no checkpoint.
    """

    def rollback(state: State, logger: Logger) -> bool:
        loaded = restore_weights(state, logger, folder.checkpoints, strategy)
        if loaded is None:
            return False
        spent, kept = ledger.elapsed(), loaded["callbacks"]["BudgetCallback"]["inside"]
        # The open phase continues in a restored ledger, so its seconds are not lost.
        ledger.restore(kept, lost=0.0)
        ledger.restore(kept, lost=max(0.0, spent - ledger.elapsed()))
        return True

    return rollback


def build_guard(config: RunConfig, folder: RunFolder, ledger: Ledger, strategy: Strategy) -> NonFiniteGuard:
    """Build the guard against losses and gradients that are not finite."""
    return NonFiniteGuard(
        config.train.on_nonfinite,
        config.train.max_nonfinite,
        rollback_to_checkpoint(folder, ledger, strategy),
        strategy.gradients,
        strategy.is_replicated,
        strategy.skips_steps,
    )
