"""Parts shared by `cram branch` and `cram extend`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cram_composer.runs.derived import DerivedRun


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Add the option not to train."""
    parser.add_argument("--prepare", action="store_true", help="create the folder and print the command to train it")


def train_or_say_how(run: DerivedRun, prepare: bool) -> int:
    """Train the run, or print the command for it if it needs several devices or `prepare`; return the exit status."""
    from cram_composer.runs.reproduce import train_command
    from cram_composer.train.launch import start

    print(f"{run.path}: from {run.origin}", flush=True)
    if prepare or run.devices > 1:
        print(f"train: {train_command(run.yaml, run.devices)}")
        return 0
    return start(run.composed, run.path)
