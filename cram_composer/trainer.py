"""Composer's trainer, without what takes time in every step of a run and changes nothing in it."""

from __future__ import annotations

import datetime
from functools import cached_property
from typing import Any

from composer import Trainer
from composer.core import State
from composer.utils import dist

from cram_composer.events import QuietEngine


class QuietTrainer(Trainer):
    """As Composer's, whose arguments it takes."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.state.__class__ = _State
        QuietEngine.replace(self.engine)

    def _accumulate_time_across_ranks(
        self, num_samples: int | float, num_tokens: int, batch_time: datetime.timedelta
    ) -> tuple[int, int, datetime.timedelta]:
        """Sums over the ranks, and the seconds of the first: by way of tensors only where there are several."""
        if dist.get_world_size() == 1:
            return int(num_samples), num_tokens, batch_time
        return super()._accumulate_time_across_ranks(num_samples, num_tokens, batch_time)


class _State(State):
    """Composer's looks through all modules of the model after every step for one that is sharded."""

    @cached_property
    def fsdp_enabled(self) -> bool:
        """Indicates if FSDP is enabled."""
        return super().fsdp_enabled
