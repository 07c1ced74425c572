"""`cram plan` and `cram scaling-check`: before a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_yaml


def add(commands: Commands) -> None:
    """Add them to the parser."""
    plan = add_command(
        commands,
        "plan",
        _plan,
        "What a budget buys, what fits into memory; from given FLOP/s or a few steps timed here.",
    )
    add_yaml(plan)
    plan.add_argument("--devices", type=int, default=1, metavar="N", help="default: 1")
    plan.add_argument("--budget", metavar="TIME", help="in place of the run's, such as 3h or {device_hours: 24}")
    plan.add_argument("--flops", type=float, metavar="F", help="achieved model FLOP/s of a device, such as 120e12")
    plan.add_argument("--mfu", type=float, metavar="SHARE", help="the same as a share of --peak, such as 0.4")
    plan.add_argument("--peak", type=float, metavar="F", help="peak FLOP/s of a device, such as 312e12 (A100, bf16)")
    plan.add_argument("--calibrate", type=int, metavar="N", help="time 2 x N steps here, the default with N = 5")
    plan.add_argument("--memory", metavar="SIZE", help="of a device, such as 24gb (default: of this machine's GPU)")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write it all to a file, too")
    scaling = add_command(
        commands, "scaling-check", _scaling_check, "Short runs on several numbers of devices: does adding some pay?"
    )
    add_yaml(scaling)
    scaling.add_argument("-n", "--sizes", default="1,2", metavar="N,N,...", help="numbers of devices (default: 1,2)")
    scaling.add_argument("--weak", action="store_true", help="the same batch per device, instead of in all")
    scaling.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of each size (default: 20)")
    scaling.add_argument("--keep", type=Path, metavar="DIR", help="keep the run folders and logs here")
    scaling.add_argument("--json", type=Path, metavar="FILE", help="write it all to a file, too")


def _plan(options: argparse.Namespace) -> int:
    from cram_composer.planning.command import plan

    return plan(options)


def _scaling_check(options: argparse.Namespace) -> int:
    from cram_composer.planning.throughput import scaling_check

    return scaling_check(options)
