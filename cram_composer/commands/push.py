"""`cram push`: upload a run's exported model to the Hugging Face hub."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    push = add_command(
        commands,
        "push",
        run,
        "Upload a run's export, model card and report to the Hugging Face hub.",
        ["cram push runs/cram-1gpu me/my-model --private"],
    )
    push.add_argument("run_folder", type=Path, metavar="RUN", help="run folder")
    push.add_argument("repo", metavar="REPO", help="NAMESPACE/NAME on the hub; created if it does not exist")
    push.add_argument("--private", action="store_true", help="create a private repository")
    push.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")


def run(options: argparse.Namespace) -> int:
    """Upload the model and print its page."""
    from huggingface_hub.utils import disable_progress_bars

    from cram_composer.runs.push import lacks_evaluations, push_run

    if not sys.stderr.isatty():
        disable_progress_bars()
    if lacks_evaluations(options.run_folder):
        note = f"the model card lacks the newest evaluations; to add them: cram export {options.run_folder}"
        print(f"note: {note}", file=sys.stderr, flush=True)
    print(push_run(options.run_folder, options.repo, options.private, options.revision))
    return 0
