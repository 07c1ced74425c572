"""DeepSpeed's configuration: what the run implies, what its user has set above that, and where the two disagree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.scaleout import ScaleoutConfig
from cram_composer.errors import ConfigError

_KEY = "scaleout.deepspeed"
_DEFAULT_STAGE = 2

# Sections that would do what the run itself does, or what a run under Composer cannot do, and why.
_REFUSED = {
    "optimizer": "the optimizer is `optimizer` of the run",
    "scheduler": "the schedule is `schedule` of the run, by the budget",
    "amp": "the precision is train.precision",
    "torch_autocast": "the precision is train.precision, whose autocast is inside the model",
    "fp16": "its loss scaling and Composer's exclude each other; use train.precision=bf16 or fp32",
    "bf16": "it keeps the weights in bf16, which averages, exports and evaluations would round; train.precision=bf16 "
    "computes in bf16 and keeps them in fp32, as every other strategy does",
    "data_types": "gradients are summed in fp32, as by the other strategies",
    "communication_data_type": "gradients are summed in fp32, as by the other strategies",
    "compile": "compilation is train.compile",
    "activation_checkpointing": "the model does not call it",
    "curriculum_learning": "the row length is algorithms.seq_length_warmup",
    "data_efficiency": "the data are the run's own",
    "progressive_layer_drop": "the recipe is stochastic-depth",
    "compression_training": "exports would not load",
    "autotuning": "it starts runs of its own",
    "elasticity": "a run goes on with any number of devices as it is",
    "pipeline": "the model is no pipeline",
    "tensor_parallel": "weights are sharded by ZeRO only",
    "checkpoint": "checkpoints are gathered and the run's own",
}
_REFUSED_IN_ZERO = {
    "offload_param": "evaluation and averages read the weights where the model is",
    "zero_hpz_partition_size": "checkpoints gather from all ranks",
    "zero_quantized_weights": "the weights would not be those of the other strategies",
    "zero_quantized_gradients": "the gradients would not be those of the other strategies",
    "zenflow": "it steps some weights later than others",
    "mics_shard_size": "checkpoints gather from all ranks",
    "round_robin_gradients": "checkpoints know one order of the shards",
}


def zero_stage(config: ScaleoutConfig) -> int:
    """The stage of ZeRO that a run asks for."""
    zero = config.deepspeed.get("zero_optimization")
    return int(zero.get("stage", _DEFAULT_STAGE)) if isinstance(zero, Mapping) else _DEFAULT_STAGE


def engine_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """What DeepSpeed is given: `scaleout.deepspeed` above what the run implies. See `check_deepspeed`."""
    given = config.scaleout.deepspeed
    zero = {
        # torch's own AdamW steps as fast on a CPU, and needs no compiler.
        "stage": _DEFAULT_STAGE,
        **given.get("zero_optimization", {}),
    }
    return {
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,  # which ones work is tested: docs/reference/strategies.md
        "zero_force_ds_cpu_optimizer": False,
        **given,
        "zero_optimization": zero,
        "train_batch_size": config.train.device_train_microbatch_size * world_size,
        "train_micro_batch_size_per_gpu": config.train.device_train_microbatch_size,
        # Composer decides how many microbatches make a step, and says so by stepping.
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": _clipping(config),
    }


def check_deepspeed(config: RunConfig, world_size: int) -> None:
    """Refuse what in `scaleout.deepspeed` disagrees with the run. Raises ConfigError, one line with both values."""
    given = config.scaleout.deepspeed
    for key, reason in _REFUSED.items():
        section = given.get(key)
        if section is not None and not (isinstance(section, Mapping) and section.get("enabled") is False):
            raise ConfigError(f"{_KEY}.{key}: {reason}; leave it out")
    _check_zero(given.get("zero_optimization", {}))
    train = config.train
    rows = train.device_train_microbatch_size * world_size
    implied: list[tuple[str, Any, str]] = [
        ("train_batch_size", train.batch_size, "train.batch_size"),
        ("train_micro_batch_size_per_gpu", train.device_train_microbatch_size, "train.device_train_microbatch_size"),
        (
            "gradient_accumulation_steps",
            train.batch_size // rows,
            f"train.batch_size / (train.device_train_microbatch_size x {world_size} device(s))",
        ),
        ("gradient_clipping", _clipping(config), "algorithms.gradient_clipping.clipping_threshold (0: none)"),
        ("managed_gradient_accumulation", False, "Composer's microbatches"),
    ]
    for key, ours, where in implied:
        value = given.get(key)
        if value is not None and value != ours:
            raise ConfigError(f"{_KEY}.{key}: {value} disagrees with {ours} of {where}; change one, or leave it out")


def _check_zero(zero: Any) -> None:
    key = f"{_KEY}.zero_optimization"
    if not isinstance(zero, Mapping):
        raise ConfigError(f"{key}: {zero!r} is not a mapping, such as {{stage: 2}}")
    stage = zero.get("stage", _DEFAULT_STAGE)
    if stage not in (1, 2, 3):
        raise ConfigError(f"{key}.stage: {stage} is not 1, 2 or 3; without shards, scaleout=ddp does the same")
    for name, reason in _REFUSED_IN_ZERO.items():
        if zero.get(name):
            raise ConfigError(f"{key}.{name}: {reason}; leave it out")
    offload = zero.get("offload_optimizer") or {}
    if not isinstance(offload, Mapping):
        raise ConfigError(f"{key}.offload_optimizer: {offload!r} is not a mapping, such as {{device: cpu}}")
    if offload.get("device", "none") not in ("none", "cpu"):
        raise ConfigError(f"{key}.offload_optimizer.device: {offload['device']}: only cpu works here; or none")
    if zero.get("overlap_comm") and stage == 1:
        raise ConfigError(f"{key}.overlap_comm: with stage 1 gradients are summed once per step; leave it out")


def _clipping(config: RunConfig) -> float:
    clipping = config.algorithms.gradient_clipping
    return 0.0 if clipping is None else clipping.clipping_threshold
