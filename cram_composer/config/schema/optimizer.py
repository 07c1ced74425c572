"""The `optimizer` and `schedule` sections of a run, and which optimizer reads which key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from cram_composer.config.schema.fields import choice, number
from cram_composer.errors import ConfigError


@dataclass
class GroupsConfig:
    """Parameter groups that differ from the rest; every optimizer reads them. Vectors and norms are never decayed."""

    decay_embeddings: bool = True  # weight decay on token, position and value embeddings (and on what is tied to them)
    embedding_lr: float = number(1.0, 0.0)  # factor of their learning rate
    layer_lr_decay: float = number(1.0, 0.01, 1.0)  # factor per layer, from the head down to the embeddings


@dataclass
class OptimizerConfig:
    """The optimizer. `lr` is the peak that the schedule multiplies; null is the default of OPTIMIZER_DEFAULTS."""

    name: str = choice(
        "adamw",
        "adafactor",
        "adamw-8bit",
        "adan",
        "lamb",
        "lion",
        "muon",
        "radam",
        "schedule-free",
        "shampoo",
        "soap",
        "sophia",
        "stableadamw",
    )
    lr: float = number(1e-3, 0.0)
    betas: list[float] | None = None  # decay rates of the moments; Adan has three
    eps: float | None = number(None, 0.0)
    weight_decay: float | None = number(None, 0.0)  # decoupled, times the learning rate
    momentum: float | None = number(None, 0.0, 0.999999)
    matrix_lr: float | None = number(None, 0.0)  # muon: of the matrices, if not `lr`; the schedule multiplies both
    ns_steps: int | None = number(None, 1)  # muon: Newton-Schulz iterations
    precondition_frequency: int | None = number(None, 1)  # steps from one eigenbasis or inverse root to the next
    max_precondition_dim: int | None = number(None, 1)  # soap: longer sides are not preconditioned
    block_size: int | None = number(None, 2)  # shampoo: matrices are preconditioned in blocks of this side
    rho: float | None = number(None, 1e-9)  # sophia: scale of the curvature, gamma in the paper's second version
    hessian_frequency: int | None = number(None, 1)  # sophia: steps from one estimate of the curvature to the next
    scale_parameter: bool | None = None  # adafactor: steps relative to the size of each weight tensor
    averaging_power: float | None = number(None, 0.0)  # schedule-free: later steps weigh step^power more
    mup_base_width: int | None = number(None, 1)  # hidden size that `lr` was tuned at: matrices get lr * base / width
    groups: GroupsConfig = field(default_factory=GroupsConfig)


_MUP = {"mup_base_width": None}

# What each optimizer reads besides `lr` and `groups`, and its default: that of the paper or of its authors' code.
OPTIMIZER_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "adamw": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, **_MUP},
        "adafactor": {"momentum": 0.0, "weight_decay": 0.0, "scale_parameter": True},
        "adamw-8bit": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, **_MUP},
        "adan": {"betas": [0.98, 0.92, 0.99], "eps": 1e-8, "weight_decay": 0.02, **_MUP},
        "lamb": {"betas": [0.9, 0.999], "eps": 1e-6, "weight_decay": 0.01},
        "lion": {"betas": [0.9, 0.99], "weight_decay": 0.0, **_MUP},
        "muon": {
            "betas": [0.9, 0.95],
            "eps": 1e-8,
            "weight_decay": 0.1,
            "momentum": 0.95,
            "matrix_lr": None,
            "ns_steps": 5,
        },
        "radam": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, **_MUP},
        "schedule-free": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "averaging_power": 0.0},
        "shampoo": {
            "betas": [0.9, 0.999],
            "eps": 1e-6,
            "weight_decay": 0.0,
            "precondition_frequency": 100,
            "block_size": 512,
        },
        "soap": {
            "betas": [0.95, 0.95],
            "eps": 1e-8,
            "weight_decay": 0.01,
            "precondition_frequency": 10,
            "max_precondition_dim": 10000,
        },
        "sophia": {
            "betas": [0.965, 0.99],
            "eps": 1e-15,
            "weight_decay": 0.1,
            "rho": 0.04,
            "hessian_frequency": 10,
        },
        "stableadamw": {"betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.01, **_MUP},
    }
)


def optimizer_values(config: OptimizerConfig) -> dict[str, Any]:
    """Every key that the optimizer reads, with its default where `config` has none.

    Raises:
        ConfigError: a key that it does not read is set, or betas are of another number or range.
    """
    defaults = OPTIMIZER_DEFAULTS[config.name]
    keys = {spec.name for spec in fields(OptimizerConfig)} - {"name", "lr", "groups"}
    given = {key: getattr(config, key) for key in keys if getattr(config, key) is not None}
    for key in sorted(given.keys() - defaults.keys()):
        raise ConfigError(
            f"optimizer.{key}: the optimizer '{config.name}' has no '{key}'; it reads lr, groups, "
            f"{', '.join(sorted(defaults))} (write optimizer.{key}=null to take it back)"
        )
    values = {**defaults, **given}
    if "betas" in values:
        count = len(defaults["betas"])
        if len(values["betas"]) != count or not all(0 <= beta < 1 for beta in values["betas"]):
            raise ConfigError(
                f"optimizer.betas: {values['betas']} must be {('two', 'three')[count - 2]} numbers in [0, 1) "
                f"for the optimizer '{config.name}'"
            )
        if config.name == "schedule-free" and not values["betas"][0]:
            raise ConfigError("optimizer.betas: schedule-free needs a first number above 0, the share of its average")
    return values


@dataclass
class ScheduleConfig:
    """Learning rate as a pure function of budget progress; a key its schedule does not read is refused."""

    name: str = choice(
        "triangle",
        "one-cycle",
        "linear",
        "polynomial",
        "cosine",
        "cosine-restarts",
        "inverse-cosine",
        "multi-cycle",
        "constant",
        "inverse-sqrt",
        "wsd",
    )
    start: float | None = number(None, 0.0, 1.0)  # factor at progress 0
    peak_at: float | None = number(None, 0.0, 1.0)  # progress of the peak
    warmup: float | None = number(None, 0.0, 1.0)  # share of the budget spent rising from `start` to the peak
    decay: float | None = number(None, 0.0, 1.0)  # share of the budget spent falling to `final`
    decay_shape: str | None = field(default=None, metadata={"choices": ("linear", "1-sqrt")})  # wsd: how it falls
    power: float | None = number(None, 0.01, 10.0)  # polynomial: exponent
    cycles: int | None = number(None, 1)  # cosine-restarts, multi-cycle: how many
    final: float | None = number(None, 0.0, 1.0)  # factor at progress 1
