"""`cram train`: train a model."""

from __future__ import annotations

import argparse
import os

from cram_composer.budget.schedules import build_schedule
from cram_composer.commands.arguments import Commands, add_command, add_yaml
from cram_composer.config import compose
from cram_composer.config.paths import expand
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    add_yaml(add_command(commands, "train", run, "Train a model; the same as `python train.py`."))


def run(options: argparse.Namespace) -> int:
    """Check the configuration, then start or resume the run."""
    composed = compose(RunConfig, options.yaml, options.overrides)
    config: RunConfig = composed.config
    check_run(config, int(os.environ.get("WORLD_SIZE", "1")))
    build_schedule(config.schedule)  # rejects keys that the schedule does not read
    from cram_composer.train.launch import start

    return start(composed, expand(config.runs_dir) / (config.run_name or options.yaml.stem))
