"""DeepSpeed's configuration: values implied by the run, merged with `scaleout.deepspeed`, and checks of the latter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.scaleout import ScaleoutConfig
from cram_composer.errors import ConfigError

_KEY = "scaleout.deepspeed"
DEFAULT_STAGE = 2

# Unsupported sections, which duplicate a setting of the run or do not work under Composer, with the reason.
_REFUSED = {
    "optimizer": "the optimizer is set by `optimizer` of the run",
    "scheduler": "the schedule is set by `schedule` of the run",
    "amp": "the precision is set by train.precision",
    "torch_autocast": "the precision is set by train.precision",
    "fp16": "its loss scaling conflicts with Composer's; use train.precision=bf16 or fp32",
    "bf16": "it stores the weights in bf16, which rounds averages, exports and evaluations; train.precision=bf16 "
    "computes in bf16 with fp32 weights, as under every other strategy",
    "data_types": "gradients are summed in fp32, as by the other strategies",
    "communication_data_type": "gradients are summed in fp32, as by the other strategies",
    "compile": "compilation is set by train.compile",
    "activation_checkpointing": "the model does not use it",
    "curriculum_learning": "the row length is set by algorithms.seq_length_warmup",
    "data_efficiency": "the run reads its own data",
    "progressive_layer_drop": "use the recipe stochastic-depth",
    "compression_training": "exported models would not load",
    "autotuning": "it starts its own runs",
    "elasticity": "runs resume on any number of devices without it",
    "pipeline": "the model is not a pipeline",
    "tensor_parallel": "only ZeRO shards the weights",
    "checkpoint": "the run writes its own, gathered checkpoints",
}
_REFUSED_IN_ZERO = {
    "offload_param": "evaluation and averages read the weights on the device",
    "zero_hpz_partition_size": "checkpoints gather from all ranks",
    "zero_quantized_weights": "the weights would differ from those of other strategies",
    "zero_quantized_gradients": "the gradients would differ from those of other strategies",
    "zenflow": "it updates some weights later than others",
    "mics_shard_size": "checkpoints gather from all ranks",
    "round_robin_gradients": "checkpoints require one order of the shards",
}


def zero_stage(config: ScaleoutConfig) -> int:
    """Return the ZeRO stage of a run."""
    zero = config.deepspeed.get("zero_optimization")
    return int(zero.get("stage", DEFAULT_STAGE)) if isinstance(zero, Mapping) else DEFAULT_STAGE


def engine_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration: the values implied by the run, merged with `scaleout.deepspeed`."""
    given = config.scaleout.deepspeed
    zero = {
        "stage": DEFAULT_STAGE,
        **given.get("zero_optimization", {}),
    }
    return {
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,  # docs/reference/strategies.md lists the tested ones
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW is as fast on a CPU and needs no compiler
        **given,
        "zero_optimization": zero,
        "train_batch_size": config.train.microbatch * world_size,
        "train_micro_batch_size_per_gpu": config.train.microbatch,
        # Composer accumulates the gradients of the microbatches of a step.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": _clipping(config),
    }


def check_deepspeed(config: RunConfig, world_size: int) -> None:
    """Reject values in `scaleout.deepspeed` that contradict the run. Raises ConfigError."""
    given = config.scaleout.deepspeed
    for key, reason in _REFUSED.items():
        section = given.get(key)
        if section is not None and not (isinstance(section, Mapping) and section.get("enabled") is False):
            raise ConfigError(f"{_KEY}.{key}: {reason}; remove it")
    _check_zero(given.get("zero_optimization", {}))
    train = config.train
    rows = train.device_train_microbatch_size
    implied: list[tuple[str, Any, str]] = [
        ("train_batch_size", train.batch_size, "train.batch_size"),
        ("train_micro_batch_size_per_gpu", rows, "train.device_train_microbatch_size"),
        (
            "gradient_accumulation_steps",
            "auto" if rows == "auto" else train.batch_size // (rows * world_size),
            f"train.batch_size / (train.device_train_microbatch_size x {world_size} device(s))",
        ),
        ("gradient_clipping", _clipping(config), "algorithms.gradient_clipping.clipping_threshold"),
        ("managed_gradient_accumulation", False, "Composer's microbatches"),
    ]
    for key, ours, where in implied:
        value = given.get(key)
        if value is not None and value != ours:
            raise ConfigError(f"{_KEY}.{key}: must be {ours} ({where}), got {value}; change one or remove it")


def _check_zero(zero: Any) -> None:
    key = f"{_KEY}.zero_optimization"
    if not isinstance(zero, Mapping):
        raise ConfigError(f"{key}: must be a mapping such as {{stage: 2}}, got {zero!r}")
    stage = zero.get("stage", DEFAULT_STAGE)
    if stage not in (1, 2, 3):
        raise ConfigError(f"{key}.stage: must be 1, 2 or 3, got {stage}; without sharding use scaleout=ddp")
    for name, reason in _REFUSED_IN_ZERO.items():
        if zero.get(name):
            raise ConfigError(f"{key}.{name}: {reason}; remove it")
    offload = zero.get("offload_optimizer") or {}
    if not isinstance(offload, Mapping):
        raise ConfigError(f"{key}.offload_optimizer: must be a mapping such as {{device: cpu}}, got {offload!r}")
    if offload.get("device", "none") not in ("none", "cpu"):
        raise ConfigError(f"{key}.offload_optimizer.device: must be cpu or none, got {offload['device']}")
    if zero.get("overlap_comm") and stage == 1:
        raise ConfigError(
            f"{key}.overlap_comm: has no effect with stage 1, which sums gradients once per step; remove it"
        )


def _clipping(config: RunConfig) -> float:
    clipping = config.algorithms.gradient_clipping
    return 0.0 if clipping is None else clipping.clipping_threshold
