"""Simulation of a budget: the steps and tokens of a run with its ramps at a given speed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from composer.core import Algorithm, Event, State
from composer.loggers import Logger

from cram_composer.algorithms.registry import REGISTRY, AlgorithmContext
from cram_composer.budget.budget import build_budget
from cram_composer.config.schema.run import BudgetConfig
from cram_composer.errors import CramError
from cram_composer.planning.run_spec import RunSpec
from cram_composer.planning.speed import Speed

# Steps shorter than this progress are simulated together; ramps are linear, so the error is small.
_MAX_PROGRESS_STEP = 1e-3
_FORWARD = 1.0 / 3.0  # share of forward and backward pass


@dataclass(frozen=True)
class Spending:
    """Result of the simulation: counts over all devices; seconds of wall-clock."""

    steps: int
    tokens: int
    epochs: float | None  # None if the size of the data is unknown
    seconds: float
    compile_seconds: float
    evaluation_seconds: float
    first_batch_size: int  # rows
    last_batch_size: int


def simulate_budget(spec: RunSpec, speed: Speed, work: Callable[[int], float]) -> Spending:
    """Simulate the run's budget at `speed`, assuming perfect scaling over devices.

    Args:
        spec: the run.
        speed: speed of one device.
        work: returns the FLOPs of a row with this many tokens relative to a row of full length.

    Raises:
        CramError: compilation and evaluations take the whole wall-clock budget, or only epochs of unknown data limit
            the run.
    """
    config, devices = spec.config, spec.devices
    loader = spec.build_loader()
    budget = build_budget(_known_limits(spec), devices)
    context = AlgorithmContext(budget, loader, devices, config.seed)
    ramps: list[Algorithm] = [
        REGISTRY[name](settings, context)
        for name in ("seq_length_warmup", "batch_size_ramp")
        if (settings := getattr(config.algorithms, name)) is not None
    ]
    limits = budget.limits
    rows_per_epoch = spec.facts.rows_per_epoch
    evaluations = _evaluation_seconds(spec, speed)
    stretch = 1.0
    if limits.seconds is not None:
        remaining = limits.seconds - speed.compile_seconds
        if remaining <= evaluations:
            raise CramError(
                f"budget: compilation ({speed.compile_seconds:.0f} s) and evaluations ({evaluations:.0f} s) take "
                f"the whole budget of {limits.seconds:.0f} s; raise it or eval.interval"
            )
        stretch = remaining / (remaining - evaluations)  # evaluations are spread over the budget
    elapsed, tokens, steps, epochs, first = speed.compile_seconds, 0, 0, 0.0, 0
    budget.advance(elapsed, 0, 0)
    while not budget.exhausted:
        for ramp in ramps:
            ramp.apply(Event.BEFORE_DATALOADER, cast(State, None), cast(Logger, None))
        row = work(loader.seq_length) * _pieces_per_row(loader)
        step_epochs = loader.rows * devices / rows_per_epoch if rows_per_epoch else 0.0
        seconds = stretch * speed.step(loader.rows / loader.microbatch, row)
        row_tokens = loader.seq_length if loader.truncate else loader.data_seq_length
        step_tokens = loader.rows * devices * row_tokens
        first = first or loader.rows
        progress = max(
            seconds / limits.seconds if limits.seconds else 0.0,
            step_tokens / limits.tokens if limits.tokens else 0.0,
            1.0 / limits.steps if limits.steps else 0.0,
            step_epochs / limits.epochs if limits.epochs else 0.0,
        )
        # A replay has no limits and follows its trace step by step.
        stride = max(1, math.floor(min(_MAX_PROGRESS_STEP, 1.0 - budget.progress) / progress)) if progress else 1
        steps, tokens, elapsed = steps + stride, tokens + stride * step_tokens, elapsed + stride * seconds
        epochs += stride * step_epochs
        budget.advance(elapsed, tokens, steps, epochs)
    return Spending(
        steps=steps,
        tokens=tokens,
        epochs=None if rows_per_epoch is None else epochs,
        seconds=elapsed + (evaluations if limits.seconds is None else 0.0),
        compile_seconds=speed.compile_seconds,
        evaluation_seconds=evaluations,
        first_batch_size=first * devices,
        last_batch_size=loader.rows * devices,
    )


def _known_limits(spec: RunSpec) -> BudgetConfig:
    """Return the budget without a limit in epochs if the rows of the data are unknown and another limit is set.

    Raises:
        CramError: there is no other limit.
    """
    limits = spec.config.budget
    if limits.epochs is None or spec.facts.rows_per_epoch is not None:
        return limits
    others = limits.model_copy(update={"epochs": None})
    if all(limit is None for _, limit in others):
        raise CramError(
            f"budget.epochs: the rows of the data are unknown ({spec.facts.source}); build the data set, or copy its "
            "manifest there, or add another limit"
        )
    return others


def _pieces_per_row(loader: Any) -> int:
    """Return the number of rows that the loader splits each row of the data into."""
    return 1 if loader.truncate else loader.data_seq_length // loader.seq_length


def _evaluation_seconds(spec: RunSpec, speed: Speed) -> float:
    """Return the seconds of the in-loop evaluations: a forward pass takes a third of a training step."""
    settings, train = spec.config.eval, spec.config.train
    if settings.interval <= 0.0:
        return 0.0
    count = max(0, math.floor(1.0 / settings.interval - 0.5))  # evaluation.held_out: the last one runs after the budget
    rows = settings.rows // (settings.batch_size * spec.devices) * settings.batch_size
    return count * _FORWARD * speed.microbatch_seconds * rows / train.microbatch
