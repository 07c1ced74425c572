"""`cram data build` and `cram data inspect`."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_yaml, overrides_from
from cram_composer.config import compose


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    data = commands.add_parser("data", help="Build and inspect data sets.").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = data.add_parser("build", help="Build a data set from a data YAML.")
    build.set_defaults(run=run_build)
    add_yaml(build, "output=~/data/mine tokenizer.vocab_size=8192")
    build.add_argument(
        "--partitions", type=int, metavar="N", help="split the work into N tasks: local processes, or Slurm jobs"
    )
    inspect = data.add_parser("inspect", help="Print statistics of a data set, and write its HTML page.")
    inspect.set_defaults(run=run_inspect)
    inspect.add_argument(
        "data", metavar="DATA", help="folder of a data set, or s3://bucket/path, gs://, oci://, azure://"
    )
    inspect.add_argument(
        "--output", type=Path, help="HTML file (default: DATA/inspect.html, ./inspect.html for object storage)"
    )


def run_build(options: argparse.Namespace) -> int:
    """Build the data set and print its folder."""
    from cram_composer.config.schema.data_build import DataBuildConfig
    from cram_composer.data.pipeline.build import build

    overrides = [*options.overrides, *overrides_from(partitions=options.partitions)]
    print(build(compose(DataBuildConfig, options.yaml, overrides).config))
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Print the statistics and write the page."""
    from cram_composer.analysis.dataset.page import console_text, write_page
    from cram_composer.analysis.dataset.read import load_data_set
    from cram_composer.storage.client import is_remote

    data = load_data_set(options.data)
    print(console_text(data))
    folder = Path() if is_remote(options.data) else Path(data.uri)
    print(f"\npage: {write_page(data, options.output or folder / 'inspect.html')}")
    return 0
