"""`cram train`: train a model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, add_yaml
from cram_composer.config import Composed, compose_run
from cram_composer.config.layers import COMMAND_LINE
from cram_composer.config.paths import expand
from cram_composer.config.schema.run import RunConfig
from cram_composer.runs.folder import RECORD


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    train = add_command(
        commands,
        "train",
        run,
        "Start or resume a run. On several GPUs: `composer -n N -m cram_composer.cli train FILE.yaml`.",
        ["cram train yamls/cram-cpu.yaml", "cram train yamls/cram-1gpu.yaml recipes=[+ema] budget=6h"],
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

    return start(composed, _run_folder(composed, options.yaml), options.restart)


def _run_folder(composed: Composed[RunConfig], yaml: Path) -> Path:
    """Return the run folder. A YAML in a run folder, as `cram branch` writes it, trains there, wherever it was moved.

    `runs_dir` and `run_name` on the command line name another folder.
    """
    given = {composed.provenance.get(key) for key in ("runs_dir", "run_name")}
    if COMMAND_LINE not in given and (yaml.parent / RECORD).is_file():
        return yaml.parent
    from cram_composer.storage.paths import plain_name

    config = composed.config
    name = config.run_name or plain_name(yaml.stem, f"{yaml}: name of the run")
    return expand(config.runs_dir) / name
