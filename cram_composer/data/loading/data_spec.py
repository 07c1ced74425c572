"""What Composer's trainer asks of the training data, besides batches."""

from __future__ import annotations

from typing import Any

import torch
from composer import DataSpec

from cram_composer.data.loading.stream import TrainLoader


class _Microbatch(dict[str, torch.Tensor]):
    """One that is not copied: Composer makes a deep copy of each, for metrics of training that no model here has."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Microbatch:
        return self


def training_data(loader: TrainLoader) -> DataSpec:
    """What Composer's trainer asks of `loader`."""
    return DataSpec(
        loader,
        split_batch=loader.split,
        get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel(),
        microbatch_transforms=_Microbatch,
    )
