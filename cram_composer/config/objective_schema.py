"""The `objective` section of a run."""

from __future__ import annotations

from dataclasses import dataclass

from cram_composer.config.fields import choice, number


@dataclass
class ObjectiveConfig:
    """Masked-language modelling (Devlin et al. 2018, section 3.1)."""

    mlm_probability: float = number(0.25, 0.01, 0.9)
    final_mlm_probability: float | None = number(
        None, 0.01, 0.9
    )  # masking rate at the end of the budget, reached linearly
    masking: str = choice("80-10-10", "all-mask")  # 80 % [MASK], 10 % a random token, 10 % kept; or all [MASK]
    positions: str = choice("fixed", "bernoulli")  # fixed: the same count in every row
