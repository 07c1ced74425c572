"""The plan of a run: what its budget buys on so many devices, and what fits into their memory."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch

from cram_composer.analysis.console import table_lines
from cram_composer.analysis.html.formatting import count, decimal, duration, percent, short_count
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.scaleout import ScaleoutConfig
from cram_composer.config.validation.scaleout import refusal
from cram_composer.device import DeviceChoice, choose_device
from cram_composer.planning.memory import step_memory
from cram_composer.planning.model_spec import DataFacts, ModelSpec, data_facts, divisors, without_numbers
from cram_composer.planning.speed import Speed, calibrate, given_speed, row_flops
from cram_composer.planning.spending import Spending, spend
from cram_composer.planning.strategies import STRATEGIES, Estimate, estimate

_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20}


@dataclass(frozen=True)
class Plan:
    """All that is known before a run; `memory` is what a device has, None where nothing was said of it."""

    devices: int
    device_hours: float
    parameters: int
    flops_per_token: float  # forward and backward, at full row length
    model_flops: float  # per second and device
    tokens_per_second: float  # of all devices, at full row length and batch
    mfu: float | None
    precision: str
    microbatch: int
    speed: Speed
    spending: Spending
    facts: DataFacts
    memory: int | None
    estimates: list[Estimate]
    assumed: list[str]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return {"format_version": 1, **asdict(self)}


def make_plan(
    config: RunConfig, devices: int, flops: float | None, mfu: float | None, steps: int, memory: int | None
) -> Plan:
    """Plan a run of `config`, which check_run has passed for `devices` devices. Raises CramError, one line.

    Args:
        config: of the run.
        devices: number of them.
        flops: achieved model FLOP/s of one device; None times a few steps on this machine's.
        mfu: the share of a device's peak that `flops` is, where it was given so.
        steps: timed, of each of two sizes.
        memory: bytes of a device; None takes a GPU's of this machine, if there is one.
    """
    spec = ModelSpec(config, data_facts(config.data), devices)
    device = _device_here(config, needed=flops is None)
    precision = device.precision if device is not None else config.train.precision.replace("auto", "bf16")
    if memory is None and device is not None and device.name == "gpu":
        memory = torch.cuda.get_device_properties(0).total_memory
    with without_numbers():
        network = spec.model().model
    length = spec.facts.sequence_length
    flops_of = cache(lambda tokens: row_flops(spec, network, tokens))
    step = step_memory(spec, precision)
    microbatch = config.train.device_train_microbatch_size
    if flops is not None:
        given = "given" if mfu is None else f"{percent(mfu)} of the peak, given"
        speed = given_speed(spec, flops_of(length), flops, given)
    else:
        assert device is not None
        speed = calibrate(spec, device, steps)
    spending = spend(spec, speed, lambda tokens: flops_of(tokens) / flops_of(length))
    batches = config.train.batch_size // (devices * microbatch)
    rows_per_second = batches * microbatch / speed.step(batches)
    sizes = [config.train.batch_size]
    ramp = config.algorithms.batch_size_ramp
    if ramp is not None and ramp.initial_batch_size is not None:
        sizes.append(ramp.initial_batch_size)
    allowed = divisors(math.gcd(*sizes) // devices)
    return Plan(
        devices=devices,
        device_hours=devices * spending.seconds / 3600.0,
        parameters=step.parameters,
        flops_per_token=flops_of(length) / length,
        model_flops=rows_per_second * flops_of(length),
        tokens_per_second=rows_per_second * length * devices,
        mfu=mfu,
        precision=precision,
        microbatch=microbatch,
        speed=speed,
        spending=spending,
        facts=spec.facts,
        memory=memory,
        estimates=[
            replace(estimate(name, step, devices, microbatch, allowed, memory), refused=_refused(config, name))
            for name in STRATEGIES
        ],
        assumed=_assumed(spec, speed, device),
    )


def _refused(config: RunConfig, strategy: str) -> str:
    """The setting that rules a strategy out; empty if there is none."""
    name, _, stage = strategy.partition(" ")[0].partition("-")
    if name == "zero":
        scaleout = ScaleoutConfig(strategy="deepspeed", deepspeed={"zero_optimization": {"stage": int(stage)}})
    else:
        scaleout = ScaleoutConfig.model_validate({"strategy": name})
    found = refusal(config.model_copy(update={"scaleout": scaleout}))
    return "" if found is None else found[0]


def _device_here(config: RunConfig, needed: bool) -> DeviceChoice | None:
    """This machine's device as the run would use it; None where the run is planned for GPUs that are elsewhere."""
    if needed or config.device == "cpu" or torch.cuda.is_available():
        return choose_device(config, 1)
    return None


def _assumed(spec: ModelSpec, speed: Speed, device: DeviceChoice | None) -> list[str]:
    lines = []
    if spec.devices > 1:
        lines.append(f"{spec.devices} devices are {spec.devices} times as fast as one: see cram throughput")
    if not speed.compile_seconds:
        lines.append("compilation takes none of the budget")
    if spec.config.eval.interval:
        lines.append("a row of an evaluation takes a third of the time of a training row")
    lines.append("checkpoints and waiting for data take no time")
    if device is None and spec.config.train.precision == "auto":
        lines.append("devices compute in bf16")
    if spec.facts.rows_per_epoch is None:
        lines.append(f"rows and vocabulary are those of {spec.facts.source}")
    return lines


def plan_text(plan: Plan, title: str) -> str:
    """The plan for the console."""
    spending, facts = plan.spending, plan.facts
    batch = f"{spending.last_batch_size:,} rows"
    if spending.first_batch_size != spending.last_batch_size:
        batch = f"{spending.first_batch_size:,} rising to {batch}"
    parts = [
        f"{duration(seconds)} {name}"
        for name, seconds in (("compilation", spending.compile_seconds), ("evaluations", spending.evaluation_seconds))
        if seconds
    ]
    epochs = "unknown: the data set is not built"
    if spending.epochs is not None:
        assert facts.rows_per_epoch is not None
        epochs = (
            f"{decimal(spending.epochs, 2)} over {short_count(facts.rows_per_epoch * facts.sequence_length)} tokens"
        )
    rows = [
        ("model", f"{short_count(plan.parameters)} parameters, {short_count(plan.flops_per_token)} FLOPs per token"),
        ("speed", f"{short_count(plan.model_flops)} model FLOP/s per device ({plan.speed.source})"),
        ("", f"{short_count(plan.tokens_per_second)} tokens/s on {plan.devices} device(s)"),
        ("budget", ", ".join([f"{duration(spending.seconds)}, {plan.device_hours:.3g} device-hours", *parts])),
        ("steps", f"{count(spending.steps)} of {batch}"),
        ("tokens", short_count(spending.tokens)),
        ("epochs", epochs),
        *((("assumed" if i == 0 else ""), line) for i, line in enumerate(plan.assumed)),
    ]
    unit = "GiB" if max(one.total for one in plan.estimates) >= _UNITS["GiB"] else "MiB"
    memory = "" if plan.memory is None else f", of {plan.memory / _UNITS[unit]:,.1f}"
    heading = f"memory per device in {unit}{memory}: microbatches of {plan.microbatch} rows of {facts.sequence_length}"
    return "\n".join(
        [title, *table_lines(rows), "", f"{heading}, {plan.precision}", *_memory_table(plan, _UNITS[unit])]
    )


def _memory_table(plan: Plan, unit: int) -> list[str]:
    names = ["weights", "gradients", "optimizer", "communication", "averages", "activations", "total"]
    if not any(estimate.averages for estimate in plan.estimates):
        names.remove("averages")
    if any(estimate.host for estimate in plan.estimates):
        names.append("host")
    judged = plan.memory is not None or any(one.refused for one in plan.estimates)
    rows = [["", *names, *(["verdict"] if judged else [])]]
    for one in plan.estimates:
        line = [one.strategy, *(f"{getattr(one, name) / unit:,.2f}" for name in names)]
        if one.refused:
            line.append(f"no: cannot do {one.refused}")
        elif judged:
            line.append((one.verdict or "") + _advice(one))
        rows.append(line)
    return table_lines(rows, right=range(1, len(names) + 1))


def _advice(one: Estimate) -> str:
    if one.largest_microbatch is None:
        return ""
    if not one.largest_microbatch:
        return ": no microbatch fits"
    return f": fits with device_train_microbatch_size={one.largest_microbatch}"
