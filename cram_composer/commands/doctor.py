"""`cram doctor`: check a machine for a run, and measure it."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import (
    Commands,
    add_command,
    add_json,
    at_least_one,
    messages_to_stderr,
    print_json,
)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    doctor = add_command(
        commands,
        "doctor",
        run,
        "Check this machine for a run and measure it, in a few minutes: device, compiler, disk, numerics, "
        "compilation, memory, speed, resuming. Exit status 1 if a check fails.",
        ["cram doctor", "cram doctor yamls/cram-1gpu.yaml --json"],
    )
    doctor.add_argument(
        "yaml", type=Path, nargs="?", metavar="FILE.yaml",
        help="run YAML (default: yamls/cram-1gpu.yaml with a GPU, else yamls/cram-cpu.yaml)",
    )  # fmt: skip
    doctor.add_argument("overrides", nargs="*", default=[], metavar="key=value", help="values to override")
    doctor.add_argument(
        "-n", "--devices", type=at_least_one, default=1, metavar="N", help="number of devices (default: 1)"
    )
    add_json(doctor)


def run(options: argparse.Namespace) -> int:
    """Examine the machine, printing each check when it is done."""
    from cram_composer.doctor.checks import Check, checks_as_json
    from cram_composer.doctor.doctor import run_doctor

    def report(check: Check) -> None:
        print(check.text(), flush=True)

    with messages_to_stderr(options.json):
        yaml = options.yaml or _default_yaml()
        checks = run_doctor(yaml, options.overrides, options.devices, report)
    if options.json:
        print_json(checks_as_json(checks))
    failed = [check.name for check in checks if check.status == "fail"]
    if failed and not options.json:
        print(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}")
    return 1 if failed else 0


def _default_yaml() -> Path:
    import torch

    return Path("yamls", "cram-1gpu.yaml" if torch.cuda.is_available() else "cram-cpu.yaml")
