"""Checks of a run that depend on several sections or on the number of devices."""

from __future__ import annotations

from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.branches import check_branch_points
from cram_composer.config.validation.combinations import check_combinations
from cram_composer.config.validation.scaleout import check_scaleout
from cram_composer.errors import ConfigError


def check_run(config: RunConfig, world_size: int) -> None:
    """Check the values of a run against each other, for `world_size` devices. Raises ConfigError."""
    budget = config.budget
    if all(limit is None for _, limit in budget):
        raise ConfigError("budget: no limit is set; set budget=24h (or tokens, steps, epochs, device_hours, replay)")
    if not any((config.data.local, config.data.remote, config.data.build)):
        raise ConfigError("data: no data set is named; set data.build, data.local or data.remote")
    _check_batches(config, world_size)
    if config.train.early_stop and config.train.early_stop.patience and config.eval.interval == 0.0:
        raise ConfigError(
            "train.early_stop.patience: counts evaluations during training, which eval.interval=0 turns off; set "
            "eval.interval=0.02, or remove patience"
        )
    if config.device == "cpu" and config.optimizer.name == "adamw-8bit":
        raise ConfigError("optimizer.name: adamw-8bit needs a GPU; set optimizer.name=adamw")
    if config.device == "cpu" and config.train.precision == "fp16":
        raise ConfigError("train.precision: fp16 needs a GPU; set train.precision=bf16 or fp32")
    check_combinations(config)
    check_branch_points(config)
    if config.model.architecture == "hf":
        # Imported here because it imports transformers, which other runs do not need this early.
        from cram_composer.config.validation.hugging_face import check_hugging_face

        check_hugging_face(config.model)
    check_scaleout(config, world_size)


def check_row_length(config: RunConfig, sequence_length: int) -> None:
    """Reject data with rows longer than the model's positions. Raises ConfigError."""
    if sequence_length > config.model.max_position_embeddings:
        raise ConfigError(
            f"model.max_position_embeddings: must be >= {sequence_length}, the row length of the data, got "
            f"{config.model.max_position_embeddings}"
        )


def _check_batches(config: RunConfig, world_size: int) -> None:
    chosen = config.train.device_train_microbatch_size
    microbatch = 1 if chosen == "auto" else chosen
    group = microbatch * world_size
    size = config.train.batch_size
    if size % group:
        raise ConfigError(
            f"train.batch_size: must be a whole number of microbatches ({microbatch} rows x {world_size} device(s)), "
            f"got {size}; set {_multiples(size, group)}, or change train.device_train_microbatch_size"
        )
    ramp = config.algorithms.batch_size_ramp
    if ramp is not None and ramp.initial_batch_size is not None and ramp.initial_batch_size % world_size:
        raise ConfigError(
            f"algorithms.batch_size_ramp.initial_batch_size: must be a multiple of the {world_size} devices, got "
            f"{ramp.initial_batch_size}; set {_multiples(ramp.initial_batch_size, world_size)}"
        )
    rows = config.eval.batch_size * world_size
    if config.eval.interval > 0.0 and config.eval.rows < rows:
        raise ConfigError(
            f"eval.rows: must be at least one batch (eval.batch_size x devices = {rows}), "
            f"got {config.eval.rows}; raise it, or set eval.interval=0"
        )
    if config.eval.final_rows < rows:
        raise ConfigError(
            f"eval.final_rows: must be at least one batch (eval.batch_size x devices = {rows}), "
            f"got {config.eval.final_rows}; raise it, or lower eval.batch_size"
        )


def _multiples(size: int, of: int) -> str:
    """Name the multiples of `of` next to `size`."""
    lower, upper = size // of * of, (size // of + 1) * of
    return f"{lower} or {upper}" if lower else f"{upper}"
