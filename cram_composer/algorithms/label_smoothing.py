"""Label smoothing of the masked-LM loss."""

from __future__ import annotations

from typing import cast

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.config.schema.algorithms import LabelSmoothingConfig
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.training_model import MaskedLMTrainingModel


class LabelSmoothing(Algorithm):
    """Spread `smoothing` of the target probability evenly over the vocabulary.

    Szegedy et al. 2015, arXiv 1512.00567, section 7. Only the training loss, which the trace shows, is smoothed;
    held-out losses are not. Composer's LabelSmoothing builds targets of the size of the logits and fails on batches
    that are dicts.
    """

    def __init__(self, config: LabelSmoothingConfig) -> None:
        self._smoothing = config.smoothing

    def match(self, event: Event, state: State) -> bool:
        """Match the start of the run."""
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Set the smoothing of the model's head."""
        network = cast(CramBertForMaskedLM, cast(MaskedLMTrainingModel, state.model).model)
        network.head.label_smoothing = self._smoothing
