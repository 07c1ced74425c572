"""`cram export`: write the Hugging Face folder of a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    export = add_command(
        commands,
        "export",
        run,
        "Export a run's newest checkpoint as a Hugging Face model folder.",
        ["cram export runs/cram-cpu --output models/mine"],
    )
    export.add_argument("run_folder", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--output", type=Path, metavar="DIR", help="folder to write (default: RUN/export)")


def run(options: argparse.Namespace) -> int:
    """Export the run and print the folder."""
    from cram_composer.train.export import export_run

    print(export_run(options.run_folder, options.output))
    return 0
