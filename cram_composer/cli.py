"""The `cram` command; every subcommand imports what it needs when it runs, so that a mistake is reported at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cram_composer.budget.schedules import build_schedule
from cram_composer.config import Composed, compose
from cram_composer.config.checks import check_run
from cram_composer.config.paths import expand
from cram_composer.config.recipe_page import recipe_page
from cram_composer.config.recipes import KINDS, load_recipe, recipe_names
from cram_composer.config.schema import RunConfig
from cram_composer.errors import CramError


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the console script."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest:
        if not hasattr(options, "overrides") or any(item.startswith("-") for item in rest):
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.overrides += rest  # those after an option, which argparse does not take for a list of them
    return _guarded(lambda: options.function(options))


def train(arguments: list[str]) -> int:
    """Entry point of train.py."""
    return main(["train", *arguments])


def _guarded(command: Callable[[], int]) -> int:
    """Run a command; a CramError becomes one line and status 2."""
    try:
        return command()
    except CramError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone, as in `cram recipes | head`
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr, flush=True)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cram", description="How good a language model can one GPU train in one day?")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        return command

    run = add("train", _train, "Train a model; the same as `python train.py`.")
    _add_yaml(run)
    explain = add("explain", _explain, "Print the final configuration and where every value came from.")
    _add_yaml(explain)
    recipes = add("recipes", _recipes, "List the recipes, or show the cards of some.")
    recipes.add_argument("names", nargs="*", metavar="NAME")
    recipes.add_argument("--markdown", action="store_true", help="print docs/recipes.md")
    data = commands.add_parser("data", help="Build data sets and look at them.").add_subparsers(
        required=True, metavar="ACTION"
    )
    build = data.add_parser("build", help="Build a data set from a data YAML.")
    build.set_defaults(function=_data_build)
    _add_yaml(build)
    build.add_argument(
        "--partitions", type=int, metavar="N", help="cut the work into N tasks: processes here, or Slurm jobs"
    )
    inspect = data.add_parser("inspect", help="Show what a data set is made of, and draw its page.")
    inspect.set_defaults(function=_data_inspect)
    inspect.add_argument(
        "data", metavar="DATA", help="folder of a data set, or s3://bucket/path, gs://, oci://, azure://"
    )
    inspect.add_argument(
        "--output", type=Path, help="HTML file (default: DATA/inspect.html, ./inspect.html for object storage)"
    )
    plan = add("plan", _plan, "What a budget buys, what fits into memory; from given FLOP/s or a few steps timed here.")
    _add_yaml(plan)
    plan.add_argument("--devices", type=int, default=1, metavar="N", help="default: 1")
    plan.add_argument("--budget", metavar="TIME", help="in place of the run's, such as 3h or {device_hours: 24}")
    plan.add_argument("--flops", type=float, metavar="F", help="achieved model FLOP/s of a device, such as 120e12")
    plan.add_argument("--mfu", type=float, metavar="SHARE", help="the same as a share of --peak, such as 0.4")
    plan.add_argument("--peak", type=float, metavar="F", help="peak FLOP/s of a device, such as 312e12 (A100, bf16)")
    plan.add_argument("--calibrate", type=int, metavar="N", help="time 2 x N steps here, the default with N = 5")
    plan.add_argument("--memory", metavar="SIZE", help="of a device, such as 24gb (default: of this machine's GPU)")
    plan.add_argument("--json", type=Path, metavar="FILE", help="write it all to a file, too")
    scaling = add("scaling-check", _scaling_check, "Short runs on several numbers of devices: does adding some pay?")
    _add_yaml(scaling)
    scaling.add_argument("-n", "--sizes", default="1,2", metavar="N,N,...", help="numbers of devices (default: 1,2)")
    scaling.add_argument("--weak", action="store_true", help="the same batch per device, instead of in all")
    scaling.add_argument("--steps", type=int, default=20, metavar="N", help="timed steps of each size (default: 20)")
    scaling.add_argument("--keep", type=Path, metavar="DIR", help="keep the run folders and logs here")
    scaling.add_argument("--json", type=Path, metavar="FILE", help="write it all to a file, too")
    export = add("export", _export, "Write the Hugging Face folder of a run's newest checkpoint.")
    export.add_argument("run", type=Path, metavar="RUN", help="run folder")
    export.add_argument("--output", type=Path, help="folder to write (default: RUN/export)")
    runs = add("runs", _runs, "List runs: those in folders, that key=value filters fit.")
    runs.add_argument("items", nargs="*", metavar="DIR or key=value", help="default: runs; such as recipe=muon seed=1")
    runs.add_argument("--json", action="store_true", help="print a JSON list")
    reproduce = add("reproduce", _reproduce, "Write the YAML of a recorded run, and say what has changed since.")
    reproduce.add_argument("run", type=Path, metavar="RECORD", help="run folder, or its record.json")
    reproduce.add_argument("--replay", action="store_true", help="its schedule step by step, without a clock")
    reproduce.add_argument("--output", type=Path, help="YAML file to write (default: NAME-again.yaml)")
    report = add("report", _report, "Draw the page of one run, or of several together.")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder")
    report.add_argument("--output", type=Path, help="HTML file (default: RUN/report.html, ./report.html for several)")
    compare = add("compare", _compare, "Compare groups of runs at equal budget: is the difference real?")
    compare.add_argument(
        "groups",
        nargs="+",
        metavar="GROUP",
        help="NAME='runs/base-*', or run folders, which are grouped by configuration without the seed",
    )
    compare.add_argument("--baseline", metavar="NAME", help="what the others are held against (default: the first)")
    compare.add_argument("--output", type=Path, help="HTML file of the page (default: ./compare.html)")
    compare.add_argument("--json", action="store_true", help="print JSON, and write no page")
    scaling = add("scaling", _scaling, "Fit loss = E + A/N^a + B/D^b to runs of several sizes and lengths.")
    scaling.add_argument("items", nargs="+", metavar="DIR or key=value", help="runs, as for `cram runs`")
    scaling.add_argument("--hold-back", type=int, default=0, metavar="N", help="predict the N largest runs instead")
    scaling.add_argument("--predict", metavar="N,D", help="loss at N parameters and D tokens, such as 1.2e8,3e9")
    scaling.add_argument("--budget", metavar="TIME", help="the best size for this wall-clock, such as 24h")
    scaling.add_argument(
        "--flops-per-second", type=float, metavar="F", help="model FLOP/s of the device (default: the runs' own speed)"
    )
    scaling.add_argument("--output", type=Path, help="HTML file of the page (default: ./scaling.html)")
    scaling.add_argument("--json", action="store_true", help="print JSON, and write no page")
    evaluate = add(
        "eval", _eval, "Fine-tune models on GLUE by a protocol and print the table, or score them as they are."
    )
    evaluate.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="run or model folder, or name of the hub; untrained:MODEL has its architecture and random weights",
    )
    evaluate.add_argument(
        "--suite", default="glue", metavar="NAME", help="protocol: NAME of yamls/eval, or a YAML file"
    )
    evaluate.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="GLUE: TASK/SPLIT.jsonl[.zst], .tsv or .parquet (default: hub); minimal-pairs: a folder with a .jsonl for "
        "each paradigm; masked-words: a text, or a folder of them",
    )
    evaluate.add_argument("--tasks", metavar="A,B", help="only these tasks of the protocol")
    evaluate.add_argument("--seeds", type=int, metavar="N", help="of each task (default: the protocol's)")
    evaluate.add_argument("--output", type=Path, default=Path("runs/eval"), metavar="DIR", help="default: runs/eval")
    evaluate.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    evaluate.add_argument("--jobs", type=int, metavar="N", help="processes on a CPU (default: one per core, up to 8)")
    evaluate.add_argument(
        "--slurm", nargs="*", metavar="key=value", help="run as Slurm jobs, with submitit's parameters"
    )
    evaluate.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="over the protocol, such as epochs=2"
    )
    return parser


def _add_yaml(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("yaml", type=Path, metavar="FILE.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as budget=6h recipes=[crammed-bert,ema]"
    )


def _train(options: argparse.Namespace) -> int:
    composed = compose(RunConfig, options.yaml, options.overrides)
    config: RunConfig = composed.config
    check_run(config, int(os.environ.get("WORLD_SIZE", "1")))
    build_schedule(config.schedule)  # refuses a key that the schedule does not read
    from cram_composer.start import start

    return start(composed, expand(config.runs_dir) / (config.run_name or options.yaml.stem))


def _plan(options: argparse.Namespace) -> int:
    from cram_composer.planning.command import plan

    return plan(options)


def _scaling_check(options: argparse.Namespace) -> int:
    from cram_composer.planning.scaling import scaling_check

    return scaling_check(options)


def _explain(options: argparse.Namespace) -> int:
    composed: Composed = compose(RunConfig, options.yaml, options.overrides)
    width = max(len(key) for key in composed.provenance)
    for key, source in composed.provenance.items():
        lost = "".join(f", over {value!r} of {layer}" for layer, value in reversed(composed.overridden.get(key, [])))
        print(f"{key:<{width}} = {_lookup(composed.plain, key)!r:<24} # {source}{lost}")
    print(f"\nhash {composed.hash}")
    return 0


def _lookup(plain: object, key: str) -> object:
    for name in key.split("."):
        assert isinstance(plain, dict)
        plain = plain[name]
    return plain


def _recipes(options: argparse.Namespace) -> int:
    if not options.names:
        recipes = [load_recipe(name, "recipes/") for name in recipe_names()]
        if options.markdown:
            print(recipe_page(recipes), end="")
            return 0
        width = max(len(recipe.name) for recipe in recipes)
        for kind in KINDS:
            print(f"{kind}s:")
            for recipe in recipes:
                if recipe.card.kind == kind:
                    print(f"  {recipe.name:<{width}}  {recipe.card.summary}")
        return 0
    for name in options.names:
        print(name)
        for label, value in vars(load_recipe(name, "command line").card).items():
            items = [value] if isinstance(value, str) else value
            if isinstance(value, dict):
                items = [f"{other} ({reason})" for other, reason in value.items()]
            if items:
                print(f"  {label + ':':<10} {', '.join(items)}")
    return 0


def _data_build(options: argparse.Namespace) -> int:
    from cram_composer.config.data_schema import DataBuildConfig
    from cram_composer.data.build import build

    partitions = [] if options.partitions is None else [f"partitions={options.partitions}"]
    composed = compose(DataBuildConfig, options.yaml, [*options.overrides, *partitions])
    print(build(composed.config))
    return 0


def _data_inspect(options: argparse.Namespace) -> int:
    from cram_composer.analysis.data_page import console, write_page
    from cram_composer.analysis.data_set import load_data_set
    from cram_composer.storage import is_remote

    data = load_data_set(options.data)
    print(console(data))
    folder = Path() if is_remote(options.data) else Path(data.uri)
    print(f"\npage: {write_page(data, options.output or folder / 'inspect.html')}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from cram_composer.finish import export_run

    print(export_run(options.run, options.output))
    return 0


def _eval(options: argparse.Namespace) -> int:
    from cram_composer.config.protocols import protocol_kind

    name, results, table, failures = _EVALUATIONS[protocol_kind(options.suite)](options)
    print(table)
    print(f"\nresults: {options.output / results}, table: {options.output / name}.json")
    for line in failures:
        print(f"error: {line}", file=sys.stderr)
    if failures:
        print(f"{len(failures)} jobs failed; the same command does them again, and only them", file=sys.stderr)
    return 1 if failures else 0


Evaluated = tuple[str, str, str, list[str]]  # protocol's name, results file, table, a line for every failure


def _fine_tuning(options: argparse.Namespace) -> Evaluated:
    from cram_composer.config.protocols import compose_protocol
    from cram_composer.evaluation.suite import evaluate_models

    overrides = list(options.set)
    if options.seeds is not None:
        overrides.append(f"seeds={options.seeds}")
    if options.tasks is not None:
        overrides.append(f"tasks=[{options.tasks}]")
    protocol = compose_protocol(options.suite, overrides).config
    slurm = None if options.slurm is None else _parameters(options.slurm)
    if options.jobs is not None and options.jobs < 1:
        raise CramError(f"--jobs {options.jobs}: at least 1")
    table, failures = evaluate_models(
        options.models,
        protocol,
        data=options.data,
        folder=options.output,
        device=options.device,
        jobs=options.jobs,
        slurm=slurm,
    )
    return protocol.name, "results.jsonl", table, failures


def _zero_shot(options: argparse.Namespace) -> Evaluated:
    from cram_composer.config.protocols import compose_protocol

    protocol = compose_protocol(options.suite, list(options.set)).config
    for name in ("seeds", "tasks", "jobs", "slurm"):
        if getattr(options, name) is not None:
            raise CramError(f"--{name}: means nothing to a protocol of kind {protocol.kind}; leave it out")
    if options.data is None:
        raise CramError(f"--data: is missing; a protocol of kind {protocol.kind} scores the files that it names")
    from cram_composer.evaluation.zero_shot import RESULTS_FILE, score_models

    table, failures = score_models(
        options.models, protocol, data=options.data, folder=options.output, device=options.device
    )
    return protocol.name, RESULTS_FILE, table, failures


_EVALUATIONS: dict[str, Callable[[argparse.Namespace], Evaluated]] = {
    "fine-tuning": _fine_tuning,
    "minimal-pairs": _zero_shot,
    "masked-words": _zero_shot,
}


def _parameters(items: list[str]) -> dict[str, object]:
    """submitit's parameters of key=value items."""
    found: dict[str, object] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise CramError(f"--slurm {item}: not key=value, such as slurm_partition=gpu timeout_min=600")
        found[key] = int(value) if value.isdigit() else value
    return found


def _runs(options: argparse.Namespace) -> int:
    from cram_composer.analysis.runs_table import list_runs, row, table

    runs, problems = list_runs(options.items, Path("runs"))
    print(json.dumps([row(run) for run in runs], indent=1, ensure_ascii=False) if options.json else table(runs))
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from cram_composer.analysis.comparison import choose_baseline, compare
    from cram_composer.analysis.comparison_page import write_comparison
    from cram_composer.analysis.comparison_text import as_json, console
    from cram_composer.analysis.groups import read_groups

    groups = read_groups(options.groups)
    pairs = compare(groups, choose_baseline(groups, options.baseline))
    if options.json:
        print(json.dumps(as_json(groups, pairs), indent=1, ensure_ascii=False))
        return 0
    print(console(groups, pairs))
    print(f"\npage: {write_comparison(groups, pairs, options.output or Path('compare.html'))}")
    return 0


def _scaling(options: argparse.Namespace) -> int:
    from cram_composer.analysis.scaling_command import scaling_command

    print(scaling_command(options))
    return 0


def _reproduce(options: argparse.Namespace) -> int:
    from cram_composer.reproduce import reproduce

    made = reproduce(options.run, options.output, options.replay)
    for title, lines in (("configuration", made.configuration), ("since then", made.surroundings)):
        print("\n".join([f"{title}: {'the same' if not lines else ''}".rstrip(), *(f"  {line}" for line in lines)]))
    print(f"written: {made.path}\ntrain:   {made.command}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from cram_composer.analysis.report import write_report

    print(write_report(options.runs, options.output))
    return 0
