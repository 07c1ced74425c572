"""`cram eval`: scores after fine-tuning, or of the model as it is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cram_composer.commands.arguments import Commands, add_command, exit_status, given, slurm_parameters
from cram_composer.errors import CramError

Evaluated = tuple[str, str, str, list[str]]  # protocol's name, results file, table, a line for every failure


def add(commands: Commands) -> None:
    """Add them to the parser."""
    evaluate = add_command(
        commands,
        "eval",
        _eval,
        "Fine-tune models on GLUE by a protocol and print the table, or score them as they are.",
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


def _eval(options: argparse.Namespace) -> int:
    from cram_composer.config.protocols import protocol_kind

    name, results, table, failures = _EVALUATIONS[protocol_kind(options.suite)](options)
    print(table)
    print(f"\nresults: {options.output / results}, table: {options.output / name}.json")
    return exit_status(failures, "jobs failed; the same command does them again")


def _fine_tuning(options: argparse.Namespace) -> Evaluated:
    from cram_composer.config.protocols import compose_protocol
    from cram_composer.evaluation.fine_tuning.suite import evaluate_models

    tasks = None if options.tasks is None else f"[{options.tasks}]"
    protocol = compose_protocol(options.suite, [*options.set, *given(seeds=options.seeds, tasks=tasks)]).config
    slurm = slurm_parameters(options.slurm)
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
    from cram_composer.evaluation.zero_shot.score import RESULTS_FILE, score_models

    table, failures = score_models(
        options.models, protocol, data=options.data, folder=options.output, device=options.device
    )
    return protocol.name, RESULTS_FILE, table, failures


_EVALUATIONS: dict[str, Callable[[argparse.Namespace], Evaluated]] = {
    "fine-tuning": _fine_tuning,
    "minimal-pairs": _zero_shot,
    "masked-words": _zero_shot,
}
