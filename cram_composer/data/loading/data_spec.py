"""The DataSpec of the training data for Composer's trainer."""

from __future__ import annotations

from typing import Any

import torch
from composer import DataSpec

from cram_composer.data.loading.stream import Batch, TrainLoader
from cram_composer.data.masking import IGNORED

_LABELS = "number_of_labels"  # key in a microbatch on its way to the device


class _Microbatch(dict[str, torch.Tensor]):
    """A microbatch on its device.

    It deep-copies to itself: Composer copies each for training metrics, which no model here has.

    Attributes:
        labels: number of labels, counted before the transfer, because counting on a GPU would wait for it.
    """

    def __init__(self, batch: dict[str, Any]) -> None:
        self.labels: int = batch.pop(_LABELS)
        super().__init__(batch)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Microbatch:
        return self


def build_data_spec(loader: TrainLoader) -> DataSpec:
    """Wrap a training loader for Composer's trainer, which weighs microbatches by their labels if told to."""

    def split(batch: Batch, microbatch_size: int | float) -> list[dict[str, Any]]:
        return [
            {**microbatch, _LABELS: int((microbatch["labels"] != IGNORED).sum())}
            for microbatch in loader.split_batch(batch, microbatch_size)
        ]

    return DataSpec(
        loader,
        split_batch=split,
        get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        get_num_tokens_in_batch=_count_tokens,
        microbatch_transforms=_Microbatch,
    )


def _count_tokens(batch: dict[str, Any]) -> dict[str, int]:
    """Count the tokens of a batch, and the labels of a microbatch under Composer's name for them."""
    labels = batch.labels if isinstance(batch, _Microbatch) else batch.get(_LABELS)
    total = {"total": batch["input_ids"].numel()}
    return total if labels is None else {**total, "loss_generating": labels}
