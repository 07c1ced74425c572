"""The `objective` section: one class per objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveInt, model_validator

from cram_composer.config.schema.base import Settings, Share, chosen_by_name, key


class Objective(Settings):
    """The tokens of a row to mask, for every objective."""

    KEPT: ClassVar[tuple[str, ...]] = (  # kept when a later layer chooses another objective
        "mlm_probability", "final_mlm_probability", "mask_schedule", "min_mlm_probability", "masking", "final_masking",
        "switch", "positions", "unit",
    )  # fmt: skip

    name: str
    mlm_probability: float = key(0.25, "share of tokens to mask", ge=0.01, le=0.9)
    final_mlm_probability: float | None = key(
        None, "masking rate at the end of the budget; null: constant", ge=0.01, le=0.9
    )
    mask_schedule: Literal["linear", "cosine", "step"] = key(
        "linear", "how the rate changes to final_mlm_probability; step: at switch, with room for no more labels"
    )
    min_mlm_probability: float | None = key(
        None, "rate of each row: uniform from this to the rate of the step; null: all rows alike", ge=0.0, le=0.9
    )
    masking: Literal["80-10-10", "all-mask"] = key(
        "80-10-10", "80 % [MASK], 10 % a random token, 10 % unchanged; or all [MASK]"
    )
    final_masking: Literal["80-10-10", "all-mask"] | None = key(None, "masking from switch on; null: the same")
    switch: Share = key(0.5, "share of the budget after which a step schedule and the other final settings hold")
    positions: Literal["fixed", "bernoulli"] = key("fixed", "fixed: the same count in every row")
    unit: Literal["token", "word", "span"] = key("token", "mask tokens, whole words, or spans of words")

    @model_validator(mode="after")
    def _check_masks(self) -> Objective:
        if self.mask_schedule != "linear" and self.final_mlm_probability is None:
            raise ValueError(
                f"mask_schedule: {self.mask_schedule} has no effect without objective.final_mlm_probability; set it "
                "or remove mask_schedule"
            )
        lowest = min(self.rates)
        row = self.min_mlm_probability
        if row is not None and row > lowest:
            raise ValueError(f"min_mlm_probability: must be <= {lowest}, the lowest rate of a step, got {row}")
        if row is not None and self.positions == "bernoulli":
            raise ValueError(
                "positions: bernoulli draws the count of every row and excludes min_mlm_probability; set "
                "objective.positions=fixed or objective.min_mlm_probability=null"
            )
        if self.switch != type(self).model_fields["switch"].default and not self.has_phases:
            raise ValueError(
                "switch: has no effect without a setting that changes there; set objective.mask_schedule=step or "
                "final_masking, or remove switch"
            )
        if self.unit != "token" and self.positions == "bernoulli":
            raise ValueError(
                f"positions: bernoulli masks single tokens and excludes unit={self.unit}; set "
                "objective.positions=fixed or objective.unit=token"
            )
        return self

    @property
    def rates(self) -> tuple[float, float]:
        """Masking rates at the start and at the end of the budget."""
        final = self.final_mlm_probability
        return self.mlm_probability, self.mlm_probability if final is None else final

    @property
    def has_phases(self) -> bool:
        """True if settings change at `switch`."""
        return self.mask_schedule == "step" or self.final_masking is not None


class MaskedLMConfig(Objective):
    """Masked-language modelling (Devlin et al. 2018, section 3.1)."""

    name: Literal["mlm"] = "mlm"
    shift: bool = key(False, "predict a token at the position before it")
    causal_fraction: Share = key(0.0, "share of rows trained with a causal mask")
    final_causal_fraction: Share | None = key(None, "that share from switch on; null: the same")
    causal_labels: Literal["sampled", "all"] = key(
        "sampled", "tokens of a causal row to predict: as many as of a masked one, or all"
    )

    adapt_every: PositiveInt | None = key(
        None,
        "steps after which tokens are weighted anew, by how rarely they are predicted; null: all tokens alike",
        le=10**9,
    )

    @property
    def has_phases(self) -> bool:
        """True if settings change at `switch`."""
        return super().has_phases or self.final_causal_fraction is not None

    @property
    def has_causal_rows(self) -> bool:
        """True if rows are causal at any time."""
        return bool(self.causal_fraction or self.final_causal_fraction)

    @model_validator(mode="after")
    def _check_causal(self) -> MaskedLMConfig:
        if self.causal_labels != "sampled" and not self.has_causal_rows:
            raise ValueError(
                f"causal_labels: {self.causal_labels} has no effect without causal rows; set objective.causal_fraction "
                "or remove causal_labels"
            )
        if self.has_causal_rows and not self.shift:
            raise ValueError(
                "causal_fraction: causal rows predict the next token, so masked rows must do the same; set "
                "objective.shift=true"
            )
        return self

    @model_validator(mode="after")
    def _check_weights(self) -> MaskedLMConfig:
        if self.adapt_every is None:
            return self
        if self.unit != "token":
            raise ValueError(
                f"adapt_every: weighs single tokens and excludes unit={self.unit}; set objective.unit=token or "
                "objective.adapt_every=null"
            )
        if self.has_causal_rows:
            raise ValueError(
                "adapt_every: causal rows have no masks to weigh; set objective.adapt_every=null or remove "
                "objective.causal_fraction and final_causal_fraction"
            )
        return self


class ReplacedTokenConfig(Objective):
    """Replaced-token detection (Clark et al. 2020, arXiv 2003.10555): a track of its own, not masked-LM training.

    A small masked LM, the generator, fills the masks of a row by samples. The encoder tells of every token whether it
    was replaced.
    """

    name: Literal["rtd"] = "rtd"
    generator_width: float = key(0.25, "hidden size of the generator, as a share of the encoder's", ge=0.01, le=1.0)
    generator_layers: PositiveInt | None = key(None, "its layers; null: as many as the encoder", le=1024)
    embeddings: Literal["shared", "gdes", "separate"] = key(
        "shared",
        "token embeddings of generator and encoder; gdes: the encoder adds its own to a constant copy (He et al. "
        "2021, arXiv 2111.09543)",
    )
    detection_weight: NonNegativeFloat = key(50.0, "weight of the encoder's loss; the generator's is 1", le=1e6)
    temperature: float = key(1.0, "divides the generator's logits before sampling", ge=0.01, le=100.0)
    corrective_masks: Share | None = key(
        None,
        "train the encoder's masked-LM head too (Meng et al. 2021, arXiv 2102.08473), with this share of the masks "
        "left in its rows; null: no head, and the generator fills masks",
    )

    @property
    def shift(self) -> bool:
        """A token is predicted at its own position."""
        return False

    @property
    def has_causal_rows(self) -> bool:
        """No row is causal."""
        return False

    @property
    def adapt_every(self) -> None:
        """All tokens are masked alike."""
        return None


if TYPE_CHECKING:
    ObjectiveConfig = MaskedLMConfig | ReplacedTokenConfig
else:
    ObjectiveConfig = chosen_by_name(Objective)
