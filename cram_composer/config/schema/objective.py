"""The `objective` section: masked-language modelling."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from cram_composer.config.schema.base import Settings, Share, key


class ObjectiveConfig(Settings):
    """Masked-language modelling (Devlin et al. 2018, section 3.1)."""

    mlm_probability: float = key(0.25, "share of tokens to mask", ge=0.01, le=0.9)
    final_mlm_probability: float | None = key(
        None, "masking rate at the end of the budget; null: constant", ge=0.01, le=0.9
    )
    mask_schedule: Literal["linear", "cosine", "step"] = key(
        "linear", "how the rate changes to final_mlm_probability; step: at half of the budget"
    )
    masking: Literal["80-10-10", "all-mask"] = key(
        "80-10-10", "80 % [MASK], 10 % a random token, 10 % unchanged; or all [MASK]"
    )
    positions: Literal["fixed", "bernoulli"] = key("fixed", "fixed: the same count in every row")
    unit: Literal["token", "word", "span"] = key("token", "mask tokens, whole words, or spans of words")
    shift: bool = key(False, "predict a token at the position before it")
    causal_fraction: Share = key(0.0, "share of rows trained with a causal mask")

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        if self.mask_schedule != "linear" and self.final_mlm_probability is None:
            raise ValueError(
                f"mask_schedule: {self.mask_schedule} has no effect without objective.final_mlm_probability; set it "
                "or remove mask_schedule"
            )
        if self.unit != "token" and self.positions == "bernoulli":
            raise ValueError(
                f"positions: bernoulli masks single tokens and excludes unit={self.unit}; set "
                "objective.positions=fixed or objective.unit=token"
            )
        if self.causal_fraction and not self.shift:
            raise ValueError(
                "causal_fraction: causal rows predict the next token, so masked rows must do the same; set "
                "objective.shift=true"
            )
        return self
