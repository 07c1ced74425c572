"""`cram train`: train a model."""

from __future__ import annotations

import argparse
import os

from cram_composer.commands.arguments import Commands, add_command, add_yaml
from cram_composer.config import compose_run
from cram_composer.config.paths import expand


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    train = add_command(
        commands,
        "train",
        run,
        "Start or resume a run. On several GPUs, use `composer -n N train.py FILE.yaml` instead.",
        ["cram train yamls/cram-cpu.yaml", "cram train yamls/cram-1gpu.yaml recipes=[crammed-bert,muon] budget=6h"],
    )
    add_yaml(train)
    train.add_argument(
        "--restart",
        action="store_true",
        help="start from step 0 with the whole budget; earlier files move to RUNS_DIR/.RUN_NAME.before-restart",
    )


def run(options: argparse.Namespace) -> int:
    """Check the configuration, then start or resume the run."""
    composed = compose_run(options.yaml, options.overrides, int(os.environ.get("WORLD_SIZE", "1")))
    from cram_composer.train.launch import start

    config = composed.config
    return start(composed, expand(config.runs_dir) / (config.run_name or options.yaml.stem), options.restart)
