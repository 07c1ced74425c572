"""What the types of the schema cannot say: names to choose from, ranges, and values that must agree with each other."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import typing
from collections.abc import Callable
from typing import Any

from cram_composer.config.schema.objective import check_objective
from cram_composer.config.schema.optimizer import optimizer_values
from cram_composer.config.schema.run import DataConfig, RunConfig
from cram_composer.config.units import parse_bytes, parse_duration
from cram_composer.config.validation.combinations import check_combinations
from cram_composer.config.validation.scaleout import check_scaleout
from cram_composer.errors import ConfigError


def check_values(schema: type, plain: dict[str, Any], provenance: dict[str, str]) -> None:
    """Check choices and ranges of every field of `schema` against its metadata, blaming the layer a value is from."""
    _walk(schema, plain, "", provenance)
    if schema is RunConfig:
        for key in ("budget.wall", "checkpoint.interval", "data.timeout", "data.deadline"):
            _check_unit(parse_duration, plain, key, provenance)
        _check_unit(parse_bytes, plain, "data.cache_limit", provenance)


def _walk(schema: type, values: dict[str, Any], prefix: str, provenance: dict[str, str]) -> None:
    types = typing.get_type_hints(schema)
    for spec in dataclasses.fields(schema):
        key, value = prefix + spec.name, values.get(spec.name)
        if value is None:
            continue
        where = f"{provenance.get(key, 'default')}: {key}"
        choices = spec.metadata.get("choices")
        if choices and value not in choices:
            nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{where}: '{value}' is not one of {', '.join(choices)}; did you mean '{nearest}'?")
        if "range" in spec.metadata:
            low, high = spec.metadata["range"]
            if not math.isfinite(value) or value < low or (high is not None and value > high):
                allowed = f"at least {low}" if high is None else f"from {low} to {high}"
                raise ConfigError(f"{where}: {value} is out of range; it must be {allowed}")
        nested = _dataclass_in(types[spec.name])
        if nested is not None and isinstance(value, dict):
            if typing.get_origin(types[spec.name]) is dict:  # by name
                for name, item in value.items():
                    _walk(nested, item, f"{key}.{name}.", provenance)
            else:
                _walk(nested, value, key + ".", provenance)


def _dataclass_in(hint: Any) -> type | None:
    for candidate in (hint, *typing.get_args(hint)):
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _check_unit(parse: Callable[[str], float], plain: dict[str, Any], key: str, provenance: dict[str, str]) -> None:
    section, name = key.split(".")
    text = plain[section][name]
    if text is not None:
        try:
            parse(text)
        except ConfigError as error:
            raise ConfigError(f"{provenance.get(key, 'default')}: {key}: {error}") from None


def check_run(config: RunConfig, world_size: int) -> None:
    """Check what depends on several values of a run on `world_size` devices. Raises ConfigError, one line."""
    budget = config.budget
    if all(v is None for v in (budget.wall, budget.device_hours, budget.tokens, budget.steps, budget.replay)):
        raise ConfigError("budget: none is set; write budget=24h (or tokens, steps, device_hours, replay)")
    if budget.replay is not None and (budget.tokens is not None or budget.steps is not None):
        raise ConfigError("budget: a replay follows its trace to the end; drop tokens and steps")
    train = config.train
    group = train.device_train_microbatch_size * world_size
    for key, size in (("train.batch_size", train.batch_size), *_ramp_sizes(config)):
        if size % group:
            lower, upper = size // group * group, (size // group + 1) * group
            near = f"{lower} or {upper}" if lower else f"{upper}"
            raise ConfigError(
                f"{key}: {size} is not a whole number of microbatches: {train.device_train_microbatch_size} rows "
                f"x {world_size} device(s) = {group}; use {near}, or change train.device_train_microbatch_size"
            )
    warmup = config.algorithms.seq_length_warmup
    if warmup is not None and warmup.max_seq_length is not None and warmup.max_seq_length < warmup.min_seq_length:
        raise ConfigError("algorithms.seq_length_warmup: max_seq_length is below min_seq_length")
    if config.device == "cpu" and train.precision == "fp16":
        raise ConfigError("train.precision: fp16 needs a GPU; use bf16 or fp32")
    optimizer_values(config.optimizer)
    check_objective(config.objective, config.model)
    check_combinations(config)
    check_scaleout(config, world_size)
    if not any((config.data.local, config.data.remote, config.data.build)):
        raise ConfigError("data: no data set named; set data.build, data.local or data.remote")
    _check_data(config.data)
    _check_branch_points(config)


def check_row_length(config: RunConfig, sequence_length: int) -> None:
    """Refuse data whose rows are longer than the model's positions. Raises ConfigError."""
    if sequence_length > config.model.max_position_embeddings:
        raise ConfigError(
            f"model.max_position_embeddings: {config.model.max_position_embeddings} is less than the data's rows of "
            f"{sequence_length} tokens"
        )


def _check_data(data: DataConfig) -> None:
    if data.remote is None and data.build is None:
        for key in ("mirror", "cache_limit"):
            if getattr(data, key) is not None:
                raise ConfigError(f"data.{key}: is for shards that come from data.remote, which is not set")
    patience = parse_duration(data.deadline) * (1 if data.mirror is None else 2)
    if data.remote is not None and parse_duration(data.timeout) <= patience:
        raise ConfigError(
            f"data.timeout: {data.timeout} is over before a shard is given up, after {patience:.0f} s (data.deadline, "
            "for the remote and its mirror each); raise data.timeout or lower data.deadline"
        )
    if data.mixture and data.curriculum:
        raise ConfigError("data.curriculum: it is a mixture that changes; drop data.mixture or data.curriculum")
    for name, weight in data.mixture.items():
        given = [key for key in ("proportion", "repeat", "choose") if getattr(weight, key) is not None]
        if len(given) > 1:
            raise ConfigError(f"data.mixture.{name}: {' and '.join(given)} are given; one of them says it all")
    for before, point in itertools.pairwise([None, *data.curriculum]):
        assert point is not None
        if not 0.0 <= point.at <= 1.0 or (before is not None and point.at <= before.at):
            raise ConfigError(
                f"data.curriculum: at {point.at}: points go up from 0 to 1, each later than the one before"
            )
        shares = point.proportions.values()
        if not all(math.isfinite(share) and share >= 0.0 for share in shares) or not sum(shares):
            raise ConfigError(f"data.curriculum: at {point.at}: proportions are 0 or more, and one of them is more")


def _check_branch_points(config: RunConfig) -> None:
    points = config.checkpoint.branch_at
    if not all(0.0 < point < 1.0 for point in points):
        raise ConfigError(
            f"checkpoint.branch_at: {points}: each is a progress of the budget between 0 and 1, such as 0.25"
        )


def _ramp_sizes(config: RunConfig) -> list[tuple[str, int]]:
    ramp = config.algorithms.batch_size_ramp
    if ramp is None or ramp.initial_batch_size is None:
        return []
    return [("algorithms.batch_size_ramp.initial_batch_size", ramp.initial_batch_size)]
