"""Compilation, memory and speed of the run's steps, and what its budget gives."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cram_composer.config.formatting import count, decimal, duration, percent, short_count
from cram_composer.data.loading.preflight import format_bytes
from cram_composer.doctor.checks import Check, CheckContext
from cram_composer.doctor.precision import card_of
from cram_composer.errors import CramError
from cram_composer.jobs.processes import last_error, run_module
from cram_composer.planning.memory import measure_step_memory
from cram_composer.planning.speed import Speed, row_flops
from cram_composer.planning.spending import simulate_budget
from cram_composer.planning.strategies import estimate_memory

_TRIAL = "cram_composer.doctor.trial"


def check_training(context: CheckContext) -> Iterator[Check]:
    """Train a few steps twice: with an empty cache of compiled kernels, and with the cache that this leaves."""
    with tempfile.TemporaryDirectory(prefix="cram-doctor-") as folder:
        cold, warm = (_try_steps(context, Path(folder)) for _ in range(2))
    yield _compilation(context, cold, warm)
    yield _memory(context, warm)
    speed = Speed(warm["microbatch_seconds"], warm["step_seconds"], cold["compile_seconds"], "measured")
    yield from _speed(context, speed, warm)
    yield _projection(context, speed)


def _try_steps(context: CheckContext, folder: Path) -> dict[str, Any]:
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}
    done = run_module(_TRIAL, context.config.model_dump(mode="json"), os.environ | caches)
    if done.returncode:
        raise CramError(last_error(done))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _compilation(context: CheckContext, cold: dict[str, Any], warm: dict[str, Any]) -> Check:
    values = {
        "cold_seconds": cold["compile_seconds"],
        "warm_seconds": warm["compile_seconds"],
        **{name: warm[name] for name in ("graphs", "graph_breaks")},
        "recompilations": len(warm["recompilations"]),
    }
    if context.device.compile == "off":
        return Check("compilation", "skip", "train.compile is off", values)
    line = (
        f"{duration(cold['compile_seconds'])} cold, {duration(warm['compile_seconds'])} warm; {warm['graphs']} graphs, "
        f"{warm['graph_breaks']} graph breaks, {len(warm['recompilations'])} recompilations after the first step"
    )
    if not warm["graphs"]:
        return Check("compilation", "fail", "nothing was compiled; see the warnings of `cram train`", values)
    if warm["recompilations"]:
        line += f", the first because {warm['recompilations'][0]}"
    return Check("compilation", "warn" if warm["graph_breaks"] or warm["recompilations"] else "pass", line, values)


def _memory(context: CheckContext, warm: dict[str, Any]) -> Check:
    step = measure_step_memory(context.spec, context.device.precision)
    rows = context.config.train.microbatch
    planned = estimate_memory("ddp", step, 1, rows, [rows], None).total
    peak = format_bytes(warm["peak_bytes"])
    line = f"peak {peak} with microbatches of {rows} rows, {format_bytes(int(planned))} planned"
    values = {"rows": rows, "peak_bytes": warm["peak_bytes"], "planned_bytes": planned}
    if context.device.name == "cpu":
        line += " without the libraries"
    return Check("memory", "pass", line, values)


def _speed(context: CheckContext, speed: Speed, warm: dict[str, Any]) -> Iterator[Check]:
    config, length = context.config, context.spec.facts.sequence_length
    microbatches = config.train.batch_size // (config.train.microbatch * context.processes)
    seconds = speed.step(microbatches)
    tokens = microbatches * config.train.microbatch * length / seconds
    with FakeTensorMode():
        network = context.spec.build_model().model
    flops = tokens / length * row_flops(context.spec, network, length)
    card = card_of(torch.cuda.get_device_name()) if context.device.name == "gpu" else None
    peak = card.flops if card is not None else context.findings.get("products", {}).get("rate")
    of = "of the stated rate" if card is not None else "of its matrix products"
    share = None if peak is None else flops / peak
    part = "" if share is None else f", {percent(share, 0)} {of}"
    line = (
        f"{count(tokens)} tokens/s, {short_count(flops)} FLOP/s{part}; "
        f"{speed.microbatch_seconds * 1e3:,.1f} ms per microbatch, {speed.step_seconds * 1e3:,.1f} ms per step besides"
    )
    values = {
        "tokens_per_second": tokens, "model_flops": flops, "mfu": share if card is not None else None,
        "share_of_products": None if card is not None else share, "microbatch_seconds": speed.microbatch_seconds,
        "step_seconds": speed.step_seconds,
    }  # fmt: skip
    yield Check("speed", "pass", line, values)
    if "host_syncs" in warm:
        places = warm["host_syncs"]
        yield Check("host syncs", "pass", f"{len(places)} places: {', '.join(places) or 'none'}", {"places": places})


def _projection(context: CheckContext, speed: Speed) -> Check:
    """Say what the budget gives at this speed, and how to type what was found."""
    spec = context.spec
    with FakeTensorMode():
        network = spec.build_model().model
    length = spec.facts.sequence_length
    spending = simulate_budget(
        spec, speed, lambda tokens: row_flops(spec, network, tokens) / row_flops(spec, network, length)
    )
    epochs = "" if spending.epochs is None else f", {decimal(spending.epochs, 2)} epochs"
    line = (
        f"{duration(spending.seconds)}: {short_count(spending.tokens)} tokens in {count(spending.steps)} steps{epochs}"
    )
    given = context.composed.config.train.device_train_microbatch_size
    found = f"train.device_train_microbatch_size={context.config.train.microbatch}"
    command = " ".join(["cram train", str(context.yaml), *context.overrides, *([found] if given == "auto" else [])])
    values = {"tokens": spending.tokens, "steps": spending.steps, "epochs": spending.epochs, "command": command}
    return Check("projection", "pass", f"{line}; {command}", values)
