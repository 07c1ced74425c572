"""`cram plan`: its options, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import math

from cram_composer.budget.schedules import build_schedule
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.units import parse_bytes
from cram_composer.config.validation.run import check_run
from cram_composer.errors import CramError
from cram_composer.storage.files import write_json

_STEPS = 5


def plan(options: argparse.Namespace) -> int:
    """Print the plan of a run. Raises CramError, one line."""
    budget = [] if options.budget is None else [f"budget={options.budget}"]
    composed = compose(RunConfig, options.yaml, [*options.overrides, *budget])
    if options.devices < 1:
        raise CramError(f"--devices {options.devices}: at least 1")
    flops = _given_flops(options)
    steps = _STEPS if options.calibrate is None else options.calibrate
    if steps < 1:
        raise CramError(f"--calibrate {steps}: at least 1")
    memory = None if options.memory is None else _bytes(options.memory)
    check_run(composed.config, options.devices)
    build_schedule(composed.config.schedule)
    from cram_composer.planning.plan import make_plan, plan_text

    made = make_plan(composed.config, options.devices, flops, options.mfu, steps, memory)
    print(plan_text(made, f"{options.yaml} on {options.devices} device(s)"))
    if options.json is not None:
        write_json(options.json, made.as_json())
    return 0


def _given_flops(options: argparse.Namespace) -> float | None:
    """FLOP/s that the command line names, directly or as a share of a peak; None to calibrate."""
    for name in ("flops", "mfu", "peak"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CramError(f"--{name} {value}: more than 0")
    if (options.mfu is None) != (options.peak is None):
        raise CramError("--mfu and --peak: one without the other says nothing; such as --mfu 0.4 --peak 312e12")
    if options.mfu is not None and options.mfu > 1:
        raise CramError(f"--mfu {options.mfu}: a share of --peak, at most 1")
    ways = [name for name in ("flops", "mfu", "calibrate") if getattr(options, name) is not None]
    if len(ways) > 1:
        raise CramError(f"--{ways[0]} and --{ways[1]}: the speed is known from one of them; drop the other")
    return options.flops if options.mfu is None else options.mfu * options.peak


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except CramError as error:
        raise CramError(f"--memory: {error}") from None
