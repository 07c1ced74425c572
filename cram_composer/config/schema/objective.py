"""The `objective` section of a run."""

from __future__ import annotations

from dataclasses import dataclass

from cram_composer.config.schema.fields import choice, number
from cram_composer.config.schema.model import ModelConfig
from cram_composer.errors import ConfigError


@dataclass
class ObjectiveConfig:
    """Masked-language modelling (Devlin et al. 2018, section 3.1)."""

    mlm_probability: float = number(0.25, 0.01, 0.9)  # masking rate, of tokens
    final_mlm_probability: float | None = number(None, 0.01, 0.9)  # masking rate at the end of the budget
    mask_schedule: str = choice("linear", "cosine", "step")  # from one to the other; step: at half of the budget
    masking: str = choice("80-10-10", "all-mask")  # 80 % [MASK], 10 % a random token, 10 % kept; or all [MASK]
    positions: str = choice("fixed", "bernoulli")  # fixed: the same count in every row
    unit: str = choice("token", "word", "span")  # what is chosen as one: whole words, spans of whole words
    shift: bool = False  # a token is predicted at the position before its own
    causal_fraction: float = number(0.0, 0.0, 1.0)  # share of rows trained as a causal model


def check_objective(objective: ObjectiveConfig, model: ModelConfig) -> None:
    """Refuse values of an objective that do not go together, or not with the model's. Raises ConfigError."""
    if objective.mask_schedule != "linear" and objective.final_mlm_probability is None:
        raise ConfigError(
            f"objective.mask_schedule: {objective.mask_schedule} has no rate to move to; set "
            "objective.final_mlm_probability, or leave objective.mask_schedule=linear"
        )
    if objective.unit != "token" and objective.positions == "bernoulli":
        raise ConfigError(
            f"objective.positions: bernoulli chooses token by token, not by {objective.unit}; use "
            "objective.positions=fixed or objective.unit=token"
        )
    if objective.causal_fraction and not objective.shift:
        raise ConfigError(
            "objective.causal_fraction: a causal row predicts a token at the position before it, and masked rows have "
            "to do so too; set objective.shift=true"
        )
    if objective.causal_fraction and model.stack == "funnel":
        raise ConfigError(
            "objective.causal_fraction: model.stack funnel averages tokens in pairs, so that a causal row would see "
            "the token that it predicts; use another stack or objective.causal_fraction=0"
        )
    if model.document_masking and model.stack == "funnel":
        raise ConfigError(
            "model.document_masking: model.stack funnel averages tokens in pairs, also where two documents meet; use "
            "another stack or model.document_masking=false"
        )
    if objective.shift and model.architecture == "hf":
        raise ConfigError(
            "objective.shift: models of architecture hf predict a token at its own position; use architecture crambert "
            "or objective.shift=false"
        )
