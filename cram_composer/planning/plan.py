"""Plan of a run: the steps and tokens of its budget on a number of devices, and the memory it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cram_composer.analysis.console import table_lines
from cram_composer.config.formatting import count, decimal, duration, percent, short_count
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.schema.scaleout import ScaleoutConfig
from cram_composer.config.validation.scaleout import refusal
from cram_composer.device import DeviceChoice, choose_device
from cram_composer.errors import CramError
from cram_composer.planning.cards import CARDS, Card, estimated_flops, memory_bytes_per_token
from cram_composer.planning.memory import StepMemory, measure_step_memory
from cram_composer.planning.microbatch import FEW_ROWS, USABLE, candidates, estimated_shares, with_microbatch
from cram_composer.planning.run_spec import DataFacts, RunSpec, divisors, read_data_facts
from cram_composer.planning.speed import Speed, measure_speed, over_phases, row_flops, speed_from_flops
from cram_composer.planning.spending import Spending, simulate_budget
from cram_composer.planning.strategies import STRATEGIES, MemoryEstimate, estimate_memory, strategy_name

_COMMON_MICROBATCH = 256  # rows, of a plan for a GPU whose memory is unknown
_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20}


@dataclass(frozen=True)
class Plan:
    """Plan of a run; `memory` is that of one device, None if unknown."""

    devices: int
    device_hours: float
    parameters: int
    flops_per_token: float  # forward and backward, at full row length
    model_flops: float  # per second and device
    tokens_per_second: float  # of all devices, at full row length and batch size
    mfu: float | None
    precision: str
    microbatch: int
    speed: Speed
    spending: Spending
    facts: DataFacts
    memory: int | None
    estimates: list[MemoryEstimate]
    assumed: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {"format_version": 1, **asdict(self)}


def make_plan(
    config: RunConfig,
    devices: int,
    *,
    flops: float | None = None,
    mfu: float | None = None,
    card: Card | None = None,
    steps: int = 5,
    memory: int | None = None,
) -> Plan:
    """Plan a run of `config`, which must be valid for `devices` devices. Raises CramError.

    Args:
        config: configuration of the run.
        devices: number of devices.
        flops: achieved model FLOP/s per device; None to time a few steps on this machine, without a `card`.
        mfu: `flops` as a share of the device's peak, if known.
        card: estimate its speed and memory from its data sheet.
        steps: number of timed steps of each of two sizes.
        memory: bytes per device; None to use that of `card` or of this machine's GPU, if any.
    """
    facts = read_data_facts(config.data)
    timed = flops is None and card is None
    device = None if card is not None else _local_device(config, needed=timed)
    precision = config.train.precision.replace("auto", "bf16" if card is None else card.precision)
    if device is not None:
        precision = device.precision
    if memory is None and card is not None:
        memory = card.memory
    if memory is None and device is not None and device.name == "gpu":
        memory = torch.cuda.get_device_properties(0).total_memory
    step = measure_step_memory(RunSpec(_with_any_microbatch(config), facts, devices), precision)
    chosen = config.train.device_train_microbatch_size == "auto"
    config = _choose_microbatch(config, step, devices, facts.sequence_length, device.name if device else "gpu", memory)
    microbatch = config.train.microbatch
    allowed = divisors(config.train.batch_size // devices)
    expected = estimate_memory(strategy_name(config), step, devices, microbatch, allowed, memory)
    if timed and memory is not None and expected.verdict == "too large":
        raise CramError(_too_large(expected, microbatch, memory))
    spec = RunSpec(config, facts, devices)
    with FakeTensorMode():
        network = spec.build_model().model
    length = facts.sequence_length
    flops_per_row = cache(lambda tokens: row_flops(spec, network, tokens))
    source = "given" if mfu is None else f"{percent(mfu)} of the peak, given"
    if card is not None:
        moved = memory_bytes_per_token(network, length, spec.mean_capacity(length), microbatch, card.precision)
        flops = estimated_flops(card, flops_per_row(length) / length, moved)
        mfu = flops / card.flops
        source = f"{percent(mfu)} of an {card.name}'s {short_count(card.flops)}, estimated"
    if flops is not None:
        speed = speed_from_flops(spec, flops_per_row(length), flops, source)
    else:
        assert device is not None
        speed = over_phases(spec, network, measure_speed(spec, device, steps))
    spending = simulate_budget(spec, speed, lambda tokens: flops_per_row(tokens) / flops_per_row(length))
    batches = config.train.batch_size // (devices * microbatch)
    rows_per_second = batches * microbatch / speed.step(batches)
    return Plan(
        devices=devices,
        device_hours=devices * spending.seconds / 3600.0,
        parameters=step.parameters,
        flops_per_token=flops_per_row(length) / length,
        model_flops=rows_per_second * flops_per_row(length),
        tokens_per_second=rows_per_second * length * devices,
        mfu=mfu,
        precision=precision,
        microbatch=microbatch,
        speed=speed,
        spending=spending,
        facts=facts,
        memory=memory,
        estimates=[
            replace(
                estimate_memory(name, step, devices, microbatch, allowed, memory),
                refused=_unsupported_setting(config, name),
            )
            for name in STRATEGIES
        ],
        assumed=_assumptions(spec, speed, precision if device is None else None, chosen),
    )


def _with_any_microbatch(config: RunConfig) -> RunConfig:
    """Return the configuration with a few rows per microbatch; the memory of others follows from them."""
    return with_microbatch(config, FEW_ROWS) if config.train.device_train_microbatch_size == "auto" else config


def _choose_microbatch(
    config: RunConfig, step: StepMemory, devices: int, row_length: int, device: str, memory: int | None
) -> RunConfig:
    """Replace `auto` by the largest microbatch that fits by estimate, or without a known memory by a common one."""
    if config.train.device_train_microbatch_size != "auto":
        return config
    sizes = candidates(config, devices, row_length, device)
    if memory is None:
        return with_microbatch(config, max(size for size in sizes if size <= _COMMON_MICROBATCH))
    shares = estimated_shares(config, step, devices, sizes, memory)
    return with_microbatch(config, max((rows for rows in sizes if shares[rows] <= USABLE), default=sizes[0]))


def _too_large(estimate: MemoryEstimate, microbatch: int, memory: int) -> str:
    needed = (
        f"{estimate.total / 1e9:.1f} GB for microbatches of {microbatch} rows, the device has {memory / 1e9:.1f} GB"
    )
    if not estimate.largest_microbatch:
        return f"model: needs {needed}, and not one row fits; lower its sizes or shard it (scaleout)"
    return (
        f"train.device_train_microbatch_size: needs {needed}; set {estimate.largest_microbatch}, or auto, or give "
        "--flops to plan without timing"
    )


def _unsupported_setting(config: RunConfig, strategy: str) -> str:
    """Return the setting that the strategy does not support; "" if all are supported."""
    name, _, stage = strategy.partition(" ")[0].partition("-")
    if name == "zero":
        scaleout = ScaleoutConfig(strategy="deepspeed", deepspeed={"zero_optimization": {"stage": int(stage)}})
    else:
        scaleout = ScaleoutConfig.model_validate({"strategy": name})
    refused_setting = refusal(config.model_copy(update={"scaleout": scaleout}))
    return "" if refused_setting is None else refused_setting[0]


def _local_device(config: RunConfig, needed: bool) -> DeviceChoice | None:
    """Return this machine's device as the run would use it; None if the run is planned for GPUs elsewhere."""
    if needed or config.device == "cpu" or torch.cuda.is_available():
        return choose_device(config, 1)
    return None


def _assumptions(spec: RunSpec, speed: Speed, precision: str | None, chosen: bool) -> list[str]:
    lines = []
    if chosen:
        lines.append(f"microbatches of {spec.config.train.microbatch} rows; a run tries what fits (auto)")
    if spec.devices > 1:
        lines.append(f"{spec.devices} devices are {spec.devices} times as fast as one (measure with cram throughput)")
    if not speed.compile_seconds:
        lines.append("compilation takes none of the budget")
    if spec.config.eval.interval:
        lines.append("an evaluation row takes a third of the time of a training row")
    lines.append("checkpoints and waiting for data take no time")
    if precision is not None and spec.config.train.precision == "auto":
        lines.append(f"devices compute in {precision}")
    if spec.facts.rows_per_epoch is None:
        lines.append(f"row length and vocabulary are those of {spec.facts.source}")
        if spec.config.budget.epochs is not None:
            lines.append("another limit ends the run before budget.epochs does")
    return lines


def plan_text(plan: Plan, title: str) -> str:
    """Format the plan for the console."""
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
    unit = "GiB" if max(estimate.total for estimate in plan.estimates) >= _UNITS["GiB"] else "MiB"
    memory = "" if plan.memory is None else f", of {plan.memory / _UNITS[unit]:,.1f}"
    heading = f"memory per device in {unit}{memory}: microbatches of {plan.microbatch} rows of {facts.sequence_length}"
    return "\n".join(
        [title, *table_lines(rows), "", f"{heading}, {plan.precision}", *_memory_table(plan, _UNITS[unit])]
    )


def plan_cards(config: RunConfig, devices: int) -> dict[str, Plan]:
    """Plan a run for every known card, each with the largest microbatch that fits by estimate."""
    automatic = config.train.model_copy(update={"device_train_microbatch_size": "auto"})
    config = config.model_copy(update={"train": automatic})
    return {name: make_plan(config, devices, card=card) for name, card in CARDS.items()}


def cards_text(config: RunConfig, plans: dict[str, Plan], prices: Mapping[str, float]) -> str:
    """Format the plans of a run for several cards as a table; `prices` of some, per hour, give the cost of the run."""
    rows = [["--card", "tokens/s", "MFU", "microbatch", "memory", "tokens", "steps", "epochs"]]
    rows[0] += ["per hour", "cost", "tokens per unit"] if prices else []
    for name, plan in plans.items():
        card = CARDS[name]
        used = next(row for row in plan.estimates if row.strategy == strategy_name(config))
        assert plan.mfu is not None
        rows.append([
            name,
            short_count(plan.tokens_per_second),
            percent(plan.mfu, 0),
            str(plan.microbatch),
            f"{used.total / card.memory:.0%} of {card.memory / _UNITS['GiB']:.0f} GiB",
            short_count(plan.spending.tokens),
            count(plan.spending.steps),
            "" if plan.spending.epochs is None else decimal(plan.spending.epochs, 2),
        ])  # fmt: skip
        if name in prices:
            cost = prices[name] * plan.device_hours
            rows[-1] += [decimal(prices[name], 2), decimal(cost, 2), short_count(plan.spending.tokens / cost)]
        elif prices:
            rows[-1] += ["", "", ""]
    return "\n".join(table_lines(rows, right=range(1, len(rows[0]))))


def _memory_table(plan: Plan, unit: int) -> list[str]:
    names = ["weights", "gradients", "optimizer", "communication", "averages", "activations", "total"]
    if not any(row.averages for row in plan.estimates):
        names.remove("averages")
    if any(row.host for row in plan.estimates):
        names.append("host")
    has_verdicts = plan.memory is not None or any(estimate.refused for estimate in plan.estimates)
    rows = [["", *names, *(["verdict"] if has_verdicts else [])]]
    for estimate in plan.estimates:
        line = [estimate.strategy, *(f"{getattr(estimate, name) / unit:,.2f}" for name in names)]
        if estimate.refused:
            line.append(f"no: does not support {estimate.refused}")
        elif has_verdicts:
            line.append((estimate.verdict or "") + _advice(estimate))
        rows.append(line)
    return table_lines(rows, right=range(1, len(names) + 1))


def _advice(estimate: MemoryEstimate) -> str:
    if estimate.largest_microbatch is None:
        return ""
    if not estimate.largest_microbatch:
        return ": no microbatch fits"
    return f": fits with device_train_microbatch_size={estimate.largest_microbatch}"
