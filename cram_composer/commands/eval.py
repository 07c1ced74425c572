"""`cram eval`: score models with or without fine-tuning."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cram_composer.commands.arguments import (
    Commands,
    add_command,
    add_json,
    exit_status,
    messages_to_stderr,
    overrides_from,
    print_json,
    slurm_parameters,
)
from cram_composer.errors import CramError
from cram_composer.storage.files import read_json

Evaluated = tuple[str, str, str, list[str]]  # protocol's name, results file, table, one line per failure


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    evaluate = add_command(
        commands,
        "eval",
        run,
        "Score models by fine-tuning them on GLUE or SuperGLUE, or without fine-tuning.",
        [
            "cram eval runs/cram-1gpu --suite glue",
            "cram eval runs/cram-cpu untrained:runs/cram-cpu --suite minimal-pairs --data blimp --json",
        ],
    )
    evaluate.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="run folder, model folder or name on the hub; untrained:MODEL has random weights instead",
    )
    evaluate.add_argument(
        "--suite",
        default="glue",
        metavar="NAME",
        help="protocol: name of a file in yamls/eval, or a YAML file (default: glue)",
    )
    evaluate.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="glue: folder of TASK/SPLIT.jsonl[.zst], .tsv or .parquet (default: download from the hub); "
        "minimal-pairs: folder with a .jsonl per paradigm; masked-words: text file or a folder of them",
    )
    evaluate.add_argument("--tasks", metavar="A,B", help="run only these tasks of the protocol")
    evaluate.add_argument("--seeds", type=int, metavar="N", help="seeds per task (default: the protocol's value)")
    evaluate.add_argument(
        "--output",
        type=Path,
        default=Path("runs/eval"),
        metavar="DIR",
        help="folder of the results (default: runs/eval)",
    )
    evaluate.add_argument(
        "--device", default="auto", choices=("auto", "cuda", "cpu"), help="device (default: auto, cuda if available)"
    )
    evaluate.add_argument(
        "--jobs", type=int, metavar="N", help="parallel processes on a CPU (default: one per core, up to 8)"
    )
    evaluate.add_argument(
        "--slurm", nargs="*", metavar="key=value", help="run as Slurm jobs with these submitit parameters"
    )
    evaluate.add_argument(
        "--set", nargs="+", default=[], metavar="key=value", help="values of the protocol to override, such as epochs=2"
    )
    add_json(evaluate)


def run(options: argparse.Namespace) -> int:
    """Evaluate the models by the kind of the protocol and print the table."""
    from cram_composer.config.protocols import protocol_kind

    with messages_to_stderr(options.json):
        name, results, table, failures = _EVALUATIONS[protocol_kind(options.suite)](options)
    rows = options.output / f"{name}.json"
    if options.json:
        print_json(read_json(rows))
    else:
        print(f"{table}\n\nresults: {options.output / results}, table: {rows}")
    return exit_status(failures, "jobs failed; run the same command to retry them")


def _fine_tuning(options: argparse.Namespace) -> Evaluated:
    from cram_composer.config.protocols import compose_protocol
    from cram_composer.evaluation.fine_tuning.suite import evaluate_models

    tasks = None if options.tasks is None else f"[{options.tasks}]"
    overrides = [*options.set, *overrides_from(seeds=options.seeds, tasks=tasks)]
    protocol = compose_protocol(options.suite, overrides).config
    slurm = slurm_parameters(options.slurm)
    if options.jobs is not None and options.jobs < 1:
        raise CramError(f"--jobs {options.jobs}: must be >= 1")
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
            raise CramError(f"--{name}: has no effect with a protocol of kind {protocol.kind}; remove it")
    if options.data is None:
        raise CramError(f"--data: required by a protocol of kind {protocol.kind}; name the files to score")
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
