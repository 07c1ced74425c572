"""Combinations that a scale-out strategy does not support, and why: docs/reference/strategies.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.deepspeed import check_deepspeed, zero_stage
from cram_composer.errors import ConfigError

Setting = Callable[[RunConfig], str | None]  # the setting that a rule is about, as key=value; None if it is not used

_ALL = (1, 2, 3)


@dataclass(frozen=True)
class Rule:
    """A setting that a strategy refuses; `stages` of ZeRO for which it holds."""

    strategy: str
    setting: Setting
    reason: str
    instead: str
    stages: tuple[int, ...] = _ALL


def _optimizer(*names: str) -> Setting:
    return lambda config: f"optimizer.name={config.optimizer.name}" if config.optimizer.name in names else None


def _algorithm(name: str, key: str | None = None, *values: str) -> Setting:
    """An algorithm that is on, or one whose `key` has one of `values`."""

    def setting(config: RunConfig) -> str | None:
        algorithm = getattr(config.algorithms, name)
        if algorithm is None:
            return None
        if key is None:
            return f"algorithms.{name}"
        value = getattr(algorithm, key)
        return f"algorithms.{name}.{key}={value}" if value in values else None

    return setting


def _fp16(config: RunConfig) -> str | None:
    return "train.precision=fp16" if config.train.precision == "fp16" else None


_FLAT = "ZeRO steps each rank's part of one flat tensor, and it needs whole matrices or their norms"
_WHOLE = "scaleout=ddp"

RULES = [
    Rule("deepspeed", _optimizer("adafactor", "lamb", "muon", "shampoo", "soap", "stableadamw"), _FLAT, _WHOLE),
    Rule("deepspeed", _optimizer("sophia"), "its curvature needs gradients of weights that are sharded", _WHOLE),
    Rule("deepspeed", _optimizer("adamw-8bit"), "checkpoints cannot gather moments in blocks of 8 bits", _WHOLE),
    Rule(
        "deepspeed",
        _optimizer("adan"),
        "with ZeRO-3 DeepSpeed calls the optimizer once for each of its groups, and Adan counts its calls as steps",
        "ZeRO-2",
        (3,),
    ),
    Rule("deepspeed", _optimizer("schedule-free"), "its average is kept in ZeRO's flat shards", _WHOLE),
    Rule(
        "deepspeed",
        _algorithm("gradient_clipping", "clipping_type", "value", "adaptive"),
        "gradients are clipped by DeepSpeed, which clips by their norm",
        "clipping_type=norm",
    ),
    Rule("deepspeed", _algorithm("sam"), "it moves weights along gradients that ZeRO has sharded", _WHOLE),
    Rule(
        "deepspeed",
        _algorithm("layer_freezing"),
        "ZeRO steps all weights, so that momentum and decay would go on in frozen ones",
        _WHOLE,
    ),
    Rule(
        "deepspeed",
        _algorithm("stochastic_depth", "stochastic_method", "block"),
        "ZeRO steps all weights, so that momentum and decay would go on in layers that are left out",
        "stochastic_method=sample",
    ),
    Rule("deepspeed", _fp16, "its loss scaling and Composer's exclude each other", "train.precision=bf16 or fp32"),
    Rule("fsdp2", _optimizer("adamw-8bit"), "checkpoints cannot gather moments in blocks of 8 bits", _WHOLE),
    Rule(
        "fsdp2",
        _optimizer("adafactor", "shampoo", "soap", "stableadamw"),
        "pytorch-optimizer's mixes whole tensors with FSDP2's shards",
        _WHOLE,
    ),
    Rule("fsdp2", _optimizer("sophia"), "its curvature needs gradients of weights that are sharded", _WHOLE),
    Rule(
        "fsdp2",
        _algorithm("sam"),
        "every backward sums gradients, and it needs those of each device's own rows",
        _WHOLE,
    ),
    Rule("fsdp2", _fp16, "an overflow in one rank's shard would not be seen by all", "train.precision=bf16 or fp32"),
]


def refusal(config: RunConfig) -> tuple[str, Rule] | None:
    """The setting that the run's strategy refuses first, and the rule; None if there is none."""
    strategy = config.scaleout.strategy
    for rule in RULES:
        if rule.strategy != strategy or (strategy == "deepspeed" and zero_stage(config.scaleout) not in rule.stages):
            continue
        setting = rule.setting(config)
        if setting is not None:
            return setting, rule
    return None


def check_scaleout(config: RunConfig, world_size: int) -> None:
    """Refuse what the run's strategy cannot do. Raises ConfigError, one line."""
    if config.scaleout.strategy == "deepspeed":
        check_deepspeed(config, world_size)
    found = refusal(config)
    if found is not None:
        setting, rule = found
        raise ConfigError(f"scaleout.strategy: {rule.strategy} and {setting}: {rule.reason}; use {rule.instead}")
