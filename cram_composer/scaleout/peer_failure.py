"""One clear line when a rank cannot go on because another one is gone."""

from __future__ import annotations

import torch.distributed
from composer.utils import dist

from cram_composer.errors import CramError

# What gloo says; it raises plain RuntimeErrors.
_SAID = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "Socket Timeout")


def peer_failure(error: BaseException) -> CramError | None:
    """The line for an error of a collective whose other side is gone or does not answer; None for any other error."""
    if dist.get_world_size() == 1 or not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if not isinstance(error, torch.distributed.DistError) and not any(said in text for said in _SAID):
        return None
    return CramError(
        f"rank {dist.get_global_rank()} of {dist.get_world_size()}: another rank has ended, or does not answer "
        f"({text.strip().splitlines()[0][:120]}); what it said comes first; the same command goes on from the last "
        "checkpoint"
    )
