"""`cram sweep`, `ablate` and `branch`: many runs and their comparison, and several budgets from one run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cram_composer.commands.arguments import Commands, add_command, add_yaml, exit_status, given, slurm_parameters
from cram_composer.errors import CramError

if TYPE_CHECKING:
    from cram_composer.config.schema.sweep import SweepConfig


def add(commands: Commands) -> None:
    """Add them to the parser."""
    sweep = add_command(
        commands, "sweep", _sweep, "Train the variants of a sweep with several seeds each, and compare them."
    )
    sweep.add_argument("sweep", metavar="NAME or FILE.yaml", help="one of yamls/sweeps, or a YAML file")
    sweep.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="over the sweep, such as run=yamls/cram-cpu.yaml"
    )
    _add_common(sweep)
    ablate = add_command(commands, "ablate", _ablate, "Train a run without each of its recipes in turn, and compare.")
    add_yaml(ablate)
    ablate.add_argument("--recipes", metavar="A,B", help="to leave out, each alone (default: all ingredients)")
    _add_common(ablate)
    branch = add_command(
        commands, "branch", _branch, "Go on from a kept checkpoint of a run at a constant rate, and let the rate decay."
    )
    branch.add_argument("run", type=Path, metavar="RUN", help="run folder, trained with checkpoint.branch_at")
    branch.add_argument("--at", required=True, metavar="TIME", help="where to leave it: 2h, or tokens or steps")
    branch.add_argument("--budget", required=True, metavar="TIME", help="of the branch, from the start of the run on")
    branch.add_argument("--name", help="of the branch's folder, beside RUN (default: RUN-BUDGET)")
    branch.add_argument("--decay-shape", default="1-sqrt", choices=("1-sqrt", "linear"))
    branch.add_argument("--prepare", action="store_true", help="make the folder, and print the command that trains it")


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, metavar="N", help="of each variant (default: the sweep's, or 3)")
    parser.add_argument("--budget", metavar="TIME", help="of each run, such as 3h or {tokens: 1e9}")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: runs/sweeps/NAME")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, or one on a CPU)")
    parser.add_argument("--slurm", nargs="*", metavar="key=value", help="as a Slurm array, with submitit's parameters")
    parser.add_argument("--yes", action="store_true", help="spend the device-hours without asking")
    parser.add_argument("--report", action="store_true", help="compare what is there, and train nothing")


def _sweep(options: argparse.Namespace) -> int:
    from cram_composer.config import compose
    from cram_composer.config.paths import sweep_file
    from cram_composer.config.schema.sweep import SweepConfig

    overrides = [*options.set, *given(seeds=options.seeds), *_whole_budget(options.budget)]
    return _run(compose(SweepConfig, sweep_file(options.sweep), overrides).config, options.sweep, options)


def _ablate(options: argparse.Namespace) -> int:
    from cram_composer.sweeps.ablation import leave_one_out

    recipes = options.recipes.split(",") if options.recipes else None
    overrides = [*options.overrides, *_whole_budget(options.budget)]
    sweep = leave_one_out(str(options.yaml), overrides, recipes)
    if options.seeds is not None:
        if options.seeds < 1:
            raise CramError(f"--seeds {options.seeds}: at least 1")
        sweep.seeds = options.seeds
    return _run(sweep, str(options.yaml), options)


def _whole_budget(text: str | None) -> list[str]:
    """The override that takes the place of every limit that the file has, in whatever unit."""
    if text is None:
        return []
    from cram_composer.config.compose import parse_override
    from cram_composer.config.schema.run import BudgetConfig

    _, value = parse_override(f"budget={text}")
    limits = value if isinstance(value, dict) else {"wall": text}
    return [f"budget={json.dumps({**vars(BudgetConfig()), **limits})}"]


def _run(config: SweepConfig, asked_by: str, options: argparse.Namespace) -> int:
    from cram_composer.sweeps.sweep import sweep

    config.name = config.name or Path(asked_by).stem
    text, failures = sweep(
        config,
        asked_by,
        (options.output or Path("runs/sweeps") / config.name).expanduser(),
        jobs=options.jobs,
        slurm=slurm_parameters(options.slurm),
        confirmed=options.yes,
        train=not options.report,
    )
    print(text)
    return exit_status(failures, "runs failed; run the same command to resume them")


def _branch(options: argparse.Namespace) -> int:
    from cram_composer.runs.branch import YAML, make_branch
    from cram_composer.train.launch import start

    made = make_branch(options.run, options.at, options.budget, name=options.name, decay_shape=options.decay_shape)
    print(f"{made.path}: from {made.origin}", flush=True)
    if options.prepare or made.devices > 1:
        count = f"-n {made.devices} " if made.devices > 1 else ""
        print(f"train: composer {count}train.py {made.path / YAML}")
        return 0
    return start(made.composed, made.path)
