"""Adaptive masking: mask tokens more often the more rarely the model predicts them."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist
from torch import nn
from transformers.modeling_outputs import MaskedLMOutput

from cram_composer.config.schema.objective import ObjectiveConfig
from cram_composer.data.loading.stream import TrainLoader
from cram_composer.data.masking import IGNORED, TokenWeights
from cram_composer.models.training_model import MaskedLMTrainingModel

_NEW = 0.8  # share of the latest estimate in a weight
_LOWEST = 0.0125  # lowest weight: 0.005 at a masking rate of 0.4


class AdaptiveMasking(Algorithm):
    """Weigh every token of the vocabulary by the share of its labels that the model got wrong.

    Edman and Fraser 2025, arXiv 2510.20475, with its hard decisions: every `every` steps, weights are averaged with the
    latest shares, bounded below, and scaled to a mean of 1. The masking rate of a row does not change. Shares are over
    the labels of every training forward pass on all ranks. Construction makes `model` return logits in training.
    """

    def __init__(self, every: int, loader: TrainLoader, model: MaskedLMTrainingModel) -> None:
        model.keep_logits()
        self._every = every
        self._loader = loader
        self._model = model
        self._updated = 0  # step of the latest update
        self._weights = np.ones(loader.collator.vocab_size, dtype=np.float32)
        self._counts = torch.zeros(2, len(self._weights))  # of labels and correct ones by token, since the update

    def match(self, event: Event, state: State) -> bool:
        """Match before every batch is fetched, and after every forward pass in training."""
        return event in (Event.BEFORE_DATALOADER, Event.AFTER_FORWARD)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Count labels and correct ones, or set the weights of the next batches."""
        if event == Event.AFTER_FORWARD:
            labels = state.batch["labels"]
            with torch.no_grad():
                found = self._model.label_logits(state.batch, cast(MaskedLMOutput, state.outputs)).argmax(-1)
            self._count(labels.flatten(), found.flatten())
        elif int(state.timestamp.batch) - self._updated >= self._every:
            self._updated = int(state.timestamp.batch)
            self._update()

    def _count(self, labels: torch.Tensor, found: torch.Tensor) -> None:
        used = (labels != IGNORED).float()
        self._counts = self._counts.to(labels.device)
        # Sums of integers in fp32 are exact in any order, up to 2^24 per token.
        self._counts.index_add_(1, labels.clamp(min=0), torch.stack((used, (labels == found).float())))

    def _update(self) -> None:
        dist.all_reduce(self._counts)
        labels, correct = self._counts.cpu().double().numpy()
        self._counts.zero_()
        wrong = 1.0 - (correct + 0.5) / (labels + 1.0)  # a token without labels counts as half right
        weights = np.maximum((1.0 - _NEW) * self._weights + _NEW * wrong, _LOWEST)
        self._weights = (weights / weights.mean()).astype(np.float32)
        self._loader.token_weights = TokenWeights(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Return weights and counts of the whole run, identical on all ranks. Collective."""
        counts = self._counts.clone()
        dist.all_reduce(counts)
        own = {"updated": self._updated, "weights": torch.from_numpy(self._weights), "counts": counts.cpu()}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; the counts of the whole run are held by the first rank."""
        self._updated = state["updated"]
        self._weights = state["weights"].numpy()
        self._counts = state["counts"].clone() if dist.get_global_rank() == 0 else torch.zeros_like(state["counts"])
        if self._updated:
            self._loader.token_weights = TokenWeights(self._weights)


def adaptive_masking(objective: ObjectiveConfig, loader: TrainLoader, model: nn.Module) -> list[Algorithm]:
    """Build the algorithm if `objective` asks for it."""
    if objective.adapt_every is None:
        return []
    assert isinstance(model, MaskedLMTrainingModel)
    return [AdaptiveMasking(objective.adapt_every, loader, model)]
