"""`cram plan`: estimate what a budget buys and what fits in memory."""

from __future__ import annotations

import argparse
import math

from cram_composer.budget.schedules import build_schedule
from cram_composer.commands.arguments import (
    Commands,
    add_command,
    add_json,
    add_yaml,
    at_least_one,
    messages_to_stderr,
    overrides_from,
    print_json,
)
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.units import parse_bytes
from cram_composer.config.validation.run import check_run
from cram_composer.errors import CramError

_STEPS = 5


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    plan = add_command(
        commands,
        "plan",
        run,
        "Estimate how many steps and tokens a budget buys and what fits in memory, from given FLOP/s or from a few "
        "steps timed on this machine.",
        [
            "cram plan yamls/cram-1gpu.yaml --mfu 0.4 --peak 312e12 --memory 40gb",
            "cram plan yamls/cram-1gpu.yaml --card a6000",
        ],
    )
    add_yaml(plan)
    plan.add_argument(
        "-n", "--devices", type=at_least_one, default=1, metavar="N", help="number of devices (default: 1)"
    )
    plan.add_argument("--budget", metavar="TIME", help="budget instead of the run's, such as 3h or {device_hours: 24}")
    plan.add_argument("--flops", type=float, metavar="F", help="achieved model FLOP/s per device, such as 120e12")
    plan.add_argument("--mfu", type=float, metavar="SHARE", help="achieved FLOP/s as a share of --peak, such as 0.4")
    plan.add_argument("--peak", type=float, metavar="F", help="peak FLOP/s per device, such as 312e12 (A100, bf16)")
    plan.add_argument(
        "--card",
        metavar="NAME",
        help="estimate from the data sheet of a GPU, such as a6000; all: a table of those known",
    )
    plan.add_argument(
        "--price",
        nargs="+",
        metavar="NAME=AMOUNT",
        help="price per hour of cards, such as a6000=0.5 h100=2.5, for what the run costs; with --card all",
    )
    plan.add_argument(
        "--calibrate", type=at_least_one, metavar="N", help="time 2 x N steps on this machine (default: N = 5)"
    )
    plan.add_argument(
        "--memory", metavar="SIZE", help="memory per device, such as 24gb (default: that of this machine's GPU)"
    )
    add_json(plan)


def run(options: argparse.Namespace) -> int:
    """Check the options before heavy imports, then print the plan."""
    composed = compose(RunConfig, options.yaml, [*options.overrides, *overrides_from(budget=options.budget)])
    flops = _given_flops(options)
    if options.price and options.card != "all":
        raise CramError("--price: has no effect without --card all")
    if options.memory and options.card == "all":
        raise CramError("--memory: has no effect with --card all, which takes that of each card")
    memory = None if options.memory is None else _bytes(options.memory)
    check_run(composed.config, options.devices)
    build_schedule(composed.config.schedule)
    from cram_composer.planning.cards import card_prices, find_card
    from cram_composer.planning.plan import cards_text, make_plan, plan_cards, plan_text

    if options.card == "all":
        prices = card_prices(options.price or [])
        with messages_to_stderr(options.json):
            plans = plan_cards(composed.config, options.devices)
        if options.json:
            print_json({"format_version": 1, "cards": {name: plan.as_json() for name, plan in plans.items()}})
        else:
            print(cards_text(composed.config, plans, prices))
        return 0
    card = None if options.card is None else find_card(options.card)
    with messages_to_stderr(options.json):
        made = make_plan(
            composed.config,
            options.devices,
            flops=flops,
            mfu=options.mfu,
            card=card,
            steps=options.calibrate or _STEPS,
            memory=memory,
        )
    if options.json:
        print_json(made.as_json())
    else:
        print(plan_text(made, f"{options.yaml} on {options.devices} device(s)"))
    return 0


def _given_flops(options: argparse.Namespace) -> float | None:
    """Return the FLOP/s given on the command line, directly or as a share of a peak; None to calibrate."""
    for name in ("flops", "mfu", "peak"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise CramError(f"--{name} {value}: must be > 0")
    if (options.mfu is None) != (options.peak is None):
        raise CramError("--mfu and --peak: require each other, such as --mfu 0.4 --peak 312e12")
    if options.mfu is not None and options.mfu > 1:
        raise CramError(f"--mfu {options.mfu}: must be <= 1, a share of --peak")
    given = [name for name in ("flops", "mfu", "card", "calibrate") if getattr(options, name) is not None]
    if len(given) > 1:
        raise CramError(f"--{given[0]} and --{given[1]}: both set the speed; remove one")
    return options.flops if options.mfu is None else options.mfu * options.peak


def _bytes(text: str) -> int:
    try:
        return parse_bytes(text)
    except CramError as error:
        raise CramError(f"--memory: {error}") from None
