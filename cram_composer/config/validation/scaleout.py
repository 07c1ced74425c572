"""Settings that a scale-out strategy does not support, found by experiment: docs/reference/strategies.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.deepspeed import check_deepspeed, zero_stage
from cram_composer.errors import ConfigError

Setting = Callable[[RunConfig], str | None]  # returns the setting of a rule as key=value; None if unused

_ALL = (1, 2, 3)


@dataclass(frozen=True)
class Rule:
    """A setting that a strategy does not support; `stages` are the ZeRO stages it applies to."""

    strategy: str
    setting: Setting
    reason: str
    instead: str
    stages: tuple[int, ...] = _ALL


def _optimizer(*names: str) -> Setting:
    return lambda config: f"optimizer.name={config.optimizer.name}" if config.optimizer.name in names else None


def _algorithm(name: str, key: str | None = None, *values: str) -> Setting:
    """Match an algorithm that is on, or one whose `key` has one of `values`."""

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


_FLAT = "it needs whole matrices or their norms, but ZeRO updates each rank's part of one flat tensor"
_WHOLE = "scaleout=ddp"

RULES = [
    Rule("deepspeed", _optimizer("adafactor", "lamb", "muon", "shampoo", "soap", "stableadamw"), _FLAT, _WHOLE),
    Rule("deepspeed", _optimizer("sophia"), "its curvature estimate needs gradients of whole weights", _WHOLE),
    Rule("deepspeed", _optimizer("adamw-8bit"), "checkpoints cannot gather 8-bit moments", _WHOLE),
    Rule(
        "deepspeed",
        _optimizer("adan"),
        "DeepSpeed's ZeRO-3 calls the optimizer once per parameter group, and Adan counts each call as a step",
        "ZeRO-2",
        (3,),
    ),
    Rule("deepspeed", _optimizer("schedule-free"), "ZeRO's flat shards hold its average", _WHOLE),
    Rule(
        "deepspeed",
        _algorithm("gradient_clipping", "clipping_type", "value", "adaptive"),
        "DeepSpeed clips gradients, and only by their norm",
        "clipping_type=norm",
    ),
    Rule("deepspeed", _algorithm("sam"), "it moves weights along gradients, which ZeRO shards", _WHOLE),
    Rule(
        "deepspeed",
        _algorithm("layer_freezing"),
        "ZeRO updates all weights, so momentum and decay would still change frozen layers",
        _WHOLE,
    ),
    Rule(
        "deepspeed",
        _algorithm("stochastic_depth", "stochastic_method", "block"),
        "ZeRO updates all weights, so momentum and decay would still change skipped layers",
        "stochastic_method=sample",
    ),
    Rule("deepspeed", _fp16, "its loss scaling and Composer's exclude each other", "train.precision=bf16 or fp32"),
    Rule("fsdp2", _optimizer("adamw-8bit"), "checkpoints cannot gather 8-bit moments", _WHOLE),
    Rule(
        "fsdp2",
        _optimizer("adafactor", "shampoo", "soap", "stableadamw"),
        "its implementation mixes whole tensors with FSDP2's shards",
        _WHOLE,
    ),
    Rule("fsdp2", _optimizer("sophia"), "its curvature estimate needs gradients of whole weights", _WHOLE),
    Rule(
        "fsdp2",
        _algorithm("sam"),
        "it needs the gradient of each device's own rows, but every backward pass sums gradients",
        _WHOLE,
    ),
    Rule(
        "fsdp2", _fp16, "an overflow in one rank's shard is not visible to the others", "train.precision=bf16 or fp32"
    ),
]


def refusal(config: RunConfig) -> tuple[str, Rule] | None:
    """Return the first setting that the run's strategy does not support, and its rule; None if all are supported."""
    strategy = config.scaleout.strategy
    for rule in RULES:
        if rule.strategy != strategy or (strategy == "deepspeed" and zero_stage(config.scaleout) not in rule.stages):
            continue
        setting = rule.setting(config)
        if setting is not None:
            return setting, rule
    return None


def check_scaleout(config: RunConfig, world_size: int) -> None:
    """Reject settings that the run's strategy does not support. Raises ConfigError."""
    if config.scaleout.strategy == "deepspeed":
        check_deepspeed(config, world_size)
    found = refusal(config)
    if found is not None:
        setting, rule = found
        raise ConfigError(
            f"scaleout.strategy: {rule.strategy} does not support {setting}: {rule.reason}; use {rule.instead}"
        )
