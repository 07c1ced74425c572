"""Warning if the budget covers more than one epoch of the data."""

from __future__ import annotations

import sys

from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from cram_composer.budget.budget import Budget
from cram_composer.budget.ledger import Ledger
from cram_composer.config.formatting import short_count

_STEPS = 20
_PROGRESS = 0.01


class EpochForecast(Callback):
    """Print one warning if the budget covers more than one epoch of `rows_per_epoch` rows of `row_tokens` tokens.

    The speed is measured over at least 20 steps and 1 % of the budget, without compilation. A budget with a limit in
    epochs needs no warning.
    """

    def __init__(self, budget: Budget, ledger: Ledger, rows_per_epoch: int, row_tokens: int) -> None:
        self._budget = budget
        self._ledger = ledger
        self._epoch_tokens = rows_per_epoch * row_tokens
        self._compiled = -1.0
        self._since: tuple[int, float, int] | None = None  # step, progress and tokens at the start of the measurement
        self._done = budget.limits.epochs is not None

    def batch_start(self, state: State, logger: Logger) -> None:
        """Restart the measurement if anything was compiled since the last step."""
        if self._done:
            return
        compiled = self._ledger.snapshot().get("compile", 0.0)
        if compiled != self._compiled or self._since is None:
            self._compiled = compiled
            self._since = int(state.timestamp.batch), self._budget.progress, int(state.timestamp.token)
            return
        step, progress, tokens = self._since
        passed = self._budget.progress - progress
        if int(state.timestamp.batch) - step < _STEPS or passed < _PROGRESS:
            return
        self._done = True
        now = int(state.timestamp.token)
        epochs = (now + (now - tokens) / passed * (1.0 - self._budget.progress)) / self._epoch_tokens
        if epochs > 1.0 and dist.get_global_rank() == 0:
            data = f"the data ({short_count(self._epoch_tokens)} tokens)"
            print(f"warning: the budget covers {epochs:.1f} epochs of {data}", file=sys.stderr, flush=True)
