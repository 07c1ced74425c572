"""Label smoothing of the masked-LM loss."""

from __future__ import annotations

from typing import cast

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.config.schema.algorithms import LabelSmoothingConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.training_model import MaskedLMTrainingModel


class LabelSmoothing(Algorithm):
    """Train on targets with `smoothing` of their probability spread evenly over the vocabulary.

    Szegedy et al. 2015, arXiv 1512.00567, section 7. Only the training loss is smoothed, which the trace shows
    smoothed; held-out losses are computed from logits. CramBERT's loss does it without targets of the size of the
    logits; Composer's LabelSmoothing makes those, and takes no batch that is a dict.
    """

    def __init__(self, config: LabelSmoothingConfig) -> None:
        self._smoothing = config.smoothing

    def match(self, event: Event, state: State) -> bool:
        """At the start."""
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Tell the model's head."""
        network = cast(CramBertForMaskedLM, cast(MaskedLMTrainingModel, state.model).model)
        network.head.label_smoothing = self._smoothing
