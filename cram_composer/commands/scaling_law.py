"""`cram scaling-law`: fit a scaling law to runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_page_or_json
from cram_composer.config.units import parse_duration
from cram_composer.errors import CramError


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    scaling = add_command(
        commands,
        "scaling-law",
        run,
        "Fit loss = E + A/N^a + B/D^b to runs of several sizes (N parameters) and lengths (D tokens).",
        ["cram scaling-law runs/sweeps/sizes --budget 24h", "cram scaling-law runs/new --against runs/old --json"],
    )
    scaling.add_argument("items", nargs="+", metavar="DIR or key=value", help="runs, as for `cram runs`")
    scaling.add_argument(
        "--hold-back", type=int, default=0, metavar="N", help="leave the N largest runs out of the fit and predict them"
    )
    scaling.add_argument("--predict", metavar="N,D", help="predict the loss at N parameters and D tokens")
    scaling.add_argument("--budget", metavar="TIME", help="find the best size for this wall-clock budget")
    scaling.add_argument(
        "--flops-per-second",
        type=float,
        metavar="F",
        help="model FLOP/s of the device (default: the speed of the runs)",
    )
    scaling.add_argument(
        "--non-embedding", action="store_true", help="count no embeddings in N; they are most of a small model"
    )
    scaling.add_argument(
        "--in-loop",
        action="store_true",
        help="fit the losses in the loop too, with a term for the decay of the learning rate; one run may suffice",
    )
    scaling.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="DIR or key=value",
        help="runs of another recipe at the same sizes, budgets and seeds: which one wins at the next size",
    )
    scaling.add_argument(
        "--scores",
        metavar="NAME",
        help="say what a lower loss is worth in the scores of this protocol",
    )
    add_page_or_json(scaling, "./scaling.html")


def run(options: argparse.Namespace) -> int:
    """Fit the law, and print it with the requested predictions."""
    at = None if options.predict is None else _size_and_tokens(options.predict)
    seconds = None if options.budget is None else parse_duration(options.budget)
    if options.flops_per_second is not None and (seconds is None or options.flops_per_second <= 0):
        raise CramError("--flops-per-second: must be > 0, and requires --budget, such as --budget 24h")
    if options.hold_back < 0:
        raise CramError(f"--hold-back {options.hold_back}: must be >= 0")
    from cram_composer.analysis.scaling.report import report_scaling

    print(
        report_scaling(
            options.items,
            hold_back=options.hold_back,
            size_and_tokens=at,
            seconds=seconds,
            flops_per_second=options.flops_per_second,
            embeddings=not options.non_embedding,
            in_loop=options.in_loop,
            against=options.against,
            scores=options.scores,
            page=None if options.json else options.output or Path("scaling.html"),
        )
    )
    return 0


def _size_and_tokens(text: str) -> tuple[float, float]:
    try:
        parameters, tokens = map(float, text.split(","))
    except ValueError:
        parameters = tokens = 0.0
    if not (parameters > 0 and tokens > 0):
        raise CramError(f"--predict {text}: expected parameters and tokens, such as 1.2e8,3e9")
    return parameters, tokens
