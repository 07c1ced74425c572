"""The DataSpec of the training data for Composer's trainer."""

from __future__ import annotations

from typing import Any

import torch
from composer import DataSpec

from cram_composer.data.loading.stream import TrainLoader


class _UncopiedMicrobatch(dict[str, torch.Tensor]):
    """A microbatch that deep-copies to itself: Composer copies each for training metrics, which no model here has."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _UncopiedMicrobatch:
        return self


def build_data_spec(loader: TrainLoader) -> DataSpec:
    """Wrap a training loader for Composer's trainer."""
    return DataSpec(
        loader,
        split_batch=loader.split_batch,
        get_num_samples_in_batch=lambda batch: batch["input_ids"].shape[0],
        get_num_tokens_in_batch=lambda batch: batch["input_ids"].numel(),
        microbatch_transforms=_UncopiedMicrobatch,
    )
