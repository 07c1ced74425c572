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


def run(options: argparse.Namespace) -> int:
    """Check the configuration, then start or resume the run."""
    composed = compose_run(options.yaml, options.overrides, int(os.environ.get("WORLD_SIZE", "1")))
    from cram_composer.storage.paths import plain_name
    from cram_composer.train.launch import start

    config = composed.config
    name = config.run_name or plain_name(options.yaml.stem, f"{options.yaml}: name of the run")
    return start(composed, expand(config.runs_dir) / name)
