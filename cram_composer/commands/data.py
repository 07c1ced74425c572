"""`cram data build` and `cram data inspect`: build a data set, or print its statistics."""

from __future__ import annotations

import argparse
from pathlib import Path

from cram_composer.commands.arguments import (
    Commands,
    add_command,
    add_page_or_json,
    add_yaml,
    at_least_one,
    overrides_from,
    print_json,
)
from cram_composer.config import compose


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    data = commands.add_parser(
        "data",
        help="Build or inspect a data set.",
        description="Build or inspect a data set.",
        examples=["cram data build yamls/data/starter.yaml", "cram data inspect ~/.cache/cram-composer/starter"],
    )
    data.set_defaults(parser=data)
    actions = data.add_subparsers(required=True, metavar="ACTION")
    build = add_command(
        actions,
        "build",
        run_build,
        "Build a data set from a data YAML.",
        [
            "cram data build yamls/data/starter.yaml output=~/data/starter",
            "cram data build yamls/data/fineweb-edu.yaml --partitions 16",
        ],
    )
    add_yaml(build, "data", "output=~/data/mine tokenizer.vocab_size=8192")
    build.add_argument(
        "--partitions",
        type=at_least_one,
        metavar="N",
        help="split the work into N tasks, run as local processes or Slurm jobs",
    )
    inspect = add_command(
        actions,
        "inspect",
        run_inspect,
        "Print the statistics of a data set, and write them with examples to an HTML page.",
        ["cram data inspect ~/.cache/cram-composer/starter", "cram data inspect s3://bucket/data --output data.html"],
    )
    inspect.add_argument(
        "data", metavar="DATA", help="folder of a data set, or a URI: s3://bucket/path, gs://, azure://"
    )
    add_page_or_json(inspect, "DATA/inspect.html; ./inspect.html for object storage")


def run_build(options: argparse.Namespace) -> int:
    """Build the data set and print its folder."""
    from cram_composer.config.schema.data_build import DataBuildConfig
    from cram_composer.data.pipeline.build import build

    overrides = [*options.overrides, *overrides_from(partitions=options.partitions)]
    print(build(compose(DataBuildConfig, options.yaml, overrides).config))
    return 0


def run_inspect(options: argparse.Namespace) -> int:
    """Print the statistics and write the page, or print the manifest as JSON."""
    from cram_composer.analysis.dataset.page import console_text, write_page
    from cram_composer.analysis.dataset.read import load_data_set
    from cram_composer.storage.client import is_remote

    data = load_data_set(options.data)
    if options.json:
        print_json(data.manifest)
        return 0
    print(console_text(data))
    folder = Path() if is_remote(options.data) else Path(data.uri)
    print(f"\npage: {write_page(data, options.output or folder / 'inspect.html')}")
    return 0
