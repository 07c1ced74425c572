"""Detection of errors on this rank that the failure of another rank caused."""

from __future__ import annotations

import torch.distributed
from composer.utils import dist

from cram_composer.errors import CramError

# gloo raises plain RuntimeErrors with these messages.
_GLOO_MESSAGES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "Socket Timeout",
)


def peer_failure(error: BaseException) -> CramError | None:
    """Return a CramError if `error` comes from a collective whose peer exited or timed out, else None."""
    if dist.get_world_size() == 1 or not isinstance(error, RuntimeError):
        return None
    text = str(error)
    if not isinstance(error, torch.distributed.DistError) and not any(message in text for message in _GLOO_MESSAGES):
        return None
    return CramError(
        f"rank {dist.get_global_rank()} of {dist.get_world_size()}: another rank exited or does not respond "
        f"({text.strip().splitlines()[0][:120]}); see the first error above; run the same command to "
        "resume from the last checkpoint"
    )
