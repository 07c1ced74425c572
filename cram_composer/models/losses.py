"""Kernels of the masked-LM loss for CramBERT in training; exported models do not contain them.

The logits of the masked tokens are the largest tensor of a microbatch. With a vocabulary of 32768, 128 rows of 32
masked tokens take 512 MiB in fp32, and twice that with their gradient. Only the kernel "full" holds all of them.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from cram_composer.models.crambert.heads import MaskedLMHead, cross_entropy

log = logging.getLogger(__name__)

Loss = Callable[[torch.Tensor, MaskedLMHead, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]

_CHUNK = 1024  # masked tokens per chunk: 128 MiB of fp32 logits with a vocabulary of 32768


def full_cross_entropy(
    hidden: torch.Tensor, head: MaskedLMHead, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `cross_entropy` without returning the logits.

    As an output of a compiled head they would get a gradient of zeros of their size, and live until the next step.
    """
    return cross_entropy(hidden, head, labels)[0], None


def cross_entropy_and_logits(
    hidden: torch.Tensor, head: MaskedLMHead, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `cross_entropy`, with logits that have no gradient: they would get one of zeros of their size."""
    loss, logits = cross_entropy(hidden, head, labels)
    return loss, logits.detach()


def chunked_cross_entropy(
    hidden: torch.Tensor, head: MaskedLMHead, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `cross_entropy` in chunks of tokens, whose logits are recomputed in the backward pass."""

    def summed(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = head.logits(hidden).float()
        return F.cross_entropy(logits, labels, ignore_index=-100, label_smoothing=head.label_smoothing, reduction="sum")

    chunks = zip(hidden.split(_CHUNK), labels.split(_CHUNK), strict=True)
    total = torch.stack([checkpoint(summed, *chunk, use_reentrant=False) for chunk in chunks]).sum()
    return total / (labels != -100).sum().clamp(min=1), None


@torch.compiler.disable
def liger_cross_entropy(
    hidden: torch.Tensor, head: MaskedLMHead, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Compute `cross_entropy` by Liger's fused linear cross-entropy (arXiv 2410.10989), for CUDA tensors."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    decoder = head.decoder
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    loss = liger_fused_linear_cross_entropy(
        hidden * head.logit_scale,
        decoder.weight.to(hidden.dtype),
        labels,
        bias=None if decoder.bias is None else decoder.bias.to(hidden.dtype) * head.logit_scale,
        label_smoothing=head.label_smoothing,
        softcap=head.softcap,
        accum_dtype=torch.float32,  # of the gradients of weight and bias over its chunks of tokens
    )
    return loss, None


LOSSES: dict[str, Loss] = {
    "chunked": chunked_cross_entropy,
    "full": full_cross_entropy,
    "liger": liger_cross_entropy,
}


def choose_loss(kernel: str, device: str) -> tuple[Loss, str]:
    """Choose the loss for `device` ("cpu" or "gpu"); return it and its name. Warns if `kernel` is unavailable."""
    if kernel != "liger":
        return LOSSES[kernel], f"torch, {kernel}"
    reason = "needs a GPU"
    if device == "gpu":
        try:
            import liger_kernel.transformers.functional  # noqa: F401
        except (ImportError, RuntimeError) as error:  # Triton raises RuntimeError without a GPU driver
            reason = str(error)
        else:
            return LOSSES[kernel], f"liger {importlib.metadata.version('liger-kernel')} (triton)"
    log.warning("model.loss_kernel: liger is unavailable (%s); using torch's chunked loss", reason)
    return LOSSES["chunked"], "torch, chunked"
