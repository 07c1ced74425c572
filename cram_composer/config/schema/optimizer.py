"""The `optimizer` section: one class per optimizer, with the defaults of its paper or its authors' code."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, field_validator

from cram_composer.config.schema.base import Beta, Betas, Settings, chosen_by_name, key

_EPS = "added to the root of the second moment"
_LR_SCALE = "learning rate of this optimizer, in units of `lr`"


class GroupsConfig(Settings):
    """Parameter groups. Vectors and norms are never decayed."""

    decay_embeddings: bool = key(True, "apply weight decay to embeddings and weights tied to them")
    embedding_lr: NonNegativeFloat = key(1.0, "factor of the learning rate of embeddings", le=1e3)
    layer_lr_decay: float = key(1.0, "factor of the learning rate per layer, from the head down", ge=0.01, le=1.0)


class Optimizer(Settings):
    """Settings of every optimizer."""

    KEPT: ClassVar[tuple[str, ...]] = ("lr", "groups")  # kept when a later layer chooses another optimizer
    supports_mup: ClassVar[bool] = False

    name: str
    lr: NonNegativeFloat = key(1e-3, "peak learning rate of AdamW, which the schedule multiplies", le=100.0)
    lr_scale: PositiveFloat = key(1.0, _LR_SCALE, le=1e4)
    weight_decay: NonNegativeFloat = key(0.0, "decoupled, multiplied by the learning rate", le=1e4)
    groups: GroupsConfig = key(GroupsConfig, "parameter groups that differ from the rest")


class _Adam(Optimizer):
    """Settings of AdamW and of optimizers with the same two moments."""

    supports_mup = True

    betas: Betas = key((0.9, 0.999), "decay rates of the two moments")
    eps: NonNegativeFloat = key(1e-8, _EPS, le=1.0)
    weight_decay: NonNegativeFloat = key(0.01, "decoupled, multiplied by the learning rate", le=1e4)


class AdamWConfig(_Adam):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101)."""

    name: Literal["adamw"] = "adamw"


class AdamW8bitConfig(_Adam):
    """AdamW with 8-bit moments (Dettmers et al. 2021, arXiv 2110.02861). Needs a GPU and bitsandbytes."""

    name: Literal["adamw-8bit"] = "adamw-8bit"


class AdafactorConfig(Optimizer):
    """Adafactor (Shazeer and Stern 2018, arXiv 1804.04235)."""

    name: Literal["adafactor"] = "adafactor"
    momentum: Beta = key(0.0, "decay rate of the first moment; 0: no first moment")
    scale_parameter: bool = key(True, "scale steps by the size of each weight tensor")


class AdanConfig(Optimizer):
    """Adan (Xie et al. 2022, arXiv 2208.06677)."""

    supports_mup = True

    name: Literal["adan"] = "adan"
    lr_scale: PositiveFloat = key(5.0, _LR_SCALE, le=1e4)
    betas: tuple[Beta, Beta, Beta] = key((0.98, 0.92, 0.99), "decay rates of the three moments")
    eps: NonNegativeFloat = key(1e-8, "added to the root of the third moment", le=1.0)
    weight_decay: NonNegativeFloat = key(0.02, "proximal, multiplied by the learning rate", le=1e4)


class LambConfig(_Adam):
    """LAMB (You et al. 2019, arXiv 1904.00962); weight decay is part of the update whose norm is taken."""

    supports_mup = False

    name: Literal["lamb"] = "lamb"
    lr_scale: PositiveFloat = key(2.5, _LR_SCALE, le=1e4)
    eps: NonNegativeFloat = key(1e-6, _EPS, le=1.0)


class LionConfig(Optimizer):
    """Lion (Chen et al. 2023, arXiv 2302.06675)."""

    supports_mup = True

    name: Literal["lion"] = "lion"
    lr_scale: PositiveFloat = key(0.1, _LR_SCALE, le=1e4)
    betas: Betas = key((0.9, 0.99), "share of the momentum in the step, and its decay rate")


class MuonConfig(Optimizer):
    """Muon for the matrices inside the layers, AdamW for all else (Liu et al. 2025, arXiv 2502.16982)."""

    name: Literal["muon"] = "muon"
    momentum: Beta = key(0.95, "decay rate of the momentum of matrices")
    ns_steps: PositiveInt = key(5, "Newton-Schulz iterations", le=100)
    ns_coeffs: Literal["original", "quintic", "polar_express", "polar_express_safer"] = key(
        "original",
        "coefficients of the iterations: Jordan's; sequences, the last two of Polar Express (arXiv 2505.16932)",
    )
    betas: Betas = key((0.9, 0.95), "decay rates of AdamW's moments")
    eps: NonNegativeFloat = key(1e-8, f"of AdamW: {_EPS}", le=1.0)
    weight_decay: NonNegativeFloat = key(0.1, "decoupled, multiplied by the learning rate", le=1e4)


class RAdamConfig(_Adam):
    """RAdam (Liu et al. 2019, arXiv 1908.03265) with decoupled weight decay."""

    name: Literal["radam"] = "radam"
    weight_decay: NonNegativeFloat = key(0.0, "decoupled, multiplied by the learning rate", le=1e4)


class ScheduleFreeConfig(Optimizer):
    """Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682)."""

    name: Literal["schedule-free"] = "schedule-free"
    lr_scale: PositiveFloat = key(2.5, _LR_SCALE, le=1e4)
    betas: Betas = key((0.9, 0.999), "share of the average in the training point; decay rate of the second moment")
    eps: NonNegativeFloat = key(1e-8, _EPS, le=1.0)
    averaging_power: NonNegativeFloat = key(0.0, "weigh step t in the average by t to this power", le=100.0)

    @field_validator("betas")
    @classmethod
    def _check_share_of_average(cls, betas: Betas) -> Betas:
        if not betas[0]:
            raise ValueError(f"the first value must be > 0, got {betas[0]:g}")
        return betas


class ShampooConfig(Optimizer):
    """Shampoo by blocks, grafted on RMSProp (Anil et al. 2020, arXiv 2002.09018, section 4)."""

    name: Literal["shampoo"] = "shampoo"
    betas: Betas = key((0.9, 0.999), "decay rates of the momentum and of the preconditioners")
    eps: NonNegativeFloat = key(1e-6, "added to the diagonal of the preconditioners", le=1.0)
    precondition_frequency: PositiveInt = key(100, "steps between two computations of inverse roots", le=10**9)
    block_size: int = key(512, "side of the blocks in which matrices are preconditioned", ge=2, le=2**16)


class SoapConfig(_Adam):
    """SOAP (Vyas et al. 2024, arXiv 2409.11321)."""

    supports_mup = False

    name: Literal["soap"] = "soap"
    betas: Betas = key((0.95, 0.95), "decay rates of the two moments")
    precondition_frequency: PositiveInt = key(10, "steps between two computations of the eigenbasis", le=10**9)
    max_precondition_dim: PositiveInt = key(4096, "longest side of a matrix to precondition", le=2**16)


class SophiaConfig(Optimizer):
    """Sophia-G (Liu et al. 2023, arXiv 2305.14342)."""

    name: Literal["sophia"] = "sophia"
    betas: Betas = key((0.965, 0.99), "decay rates of the momentum and of the curvature")
    eps: NonNegativeFloat = key(1e-15, "smallest scaled curvature to divide by", le=1.0)
    weight_decay: NonNegativeFloat = key(0.1, "decoupled, multiplied by the learning rate", le=1e4)
    rho: float = key(0.04, "scale of the curvature; gamma in the paper's second version", ge=1e-9, le=1e6)
    hessian_frequency: PositiveInt = key(10, "steps between two estimates of the curvature", le=10**9)


class StableAdamWConfig(_Adam):
    """AdamW with Adafactor's update clipping (Wortsman et al. 2023, arXiv 2304.13013)."""

    name: Literal["stableadamw"] = "stableadamw"
    betas: Betas = key((0.9, 0.99), "decay rates of the two moments")


if TYPE_CHECKING:
    OptimizerConfig = Optimizer
else:
    OptimizerConfig = chosen_by_name(Optimizer)
