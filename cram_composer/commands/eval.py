"""`cram eval`: score models with or without fine-tuning."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cram_composer.commands.arguments import (
    Commands,
    add_command,
    add_json,
    at_least_one,
    exit_status,
    messages_to_stderr,
    overrides_from,
    print_json,
    slurm_parameters,
)
from cram_composer.config.messages import not_one_of
from cram_composer.errors import CramError
from cram_composer.storage.files import read_json

_COMPACT_WIDTH = 256  # hidden size of BERT-Mini; pairs of texts need the pooling of glue-compact up to there
_OWN_DATA_OPTIONS = ("train", "validation", "text", "text_pair", "label", "type")

Evaluated = tuple[str, str, list[str]]  # results file, table, one line per failure


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    evaluate = add_command(
        commands,
        "eval",
        run,
        "Score models by fine-tuning them on GLUE, SuperGLUE or your own files, or without fine-tuning.",
        [
            "cram eval runs/cram-1gpu --suite glue",
            "cram eval runs/cram-1gpu --train train.csv --validation dev.csv --text review --label stars",
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
        metavar="NAME",
        help="protocol: name of a file in yamls/eval, or a YAML file (default: glue, or glue-compact if no "
        f"model is wider than {_COMPACT_WIDTH}; own-data with --train)",
    )
    evaluate.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="glue: folder of TASK/SPLIT.jsonl[.zst], .tsv or .parquet (default: download from the hub); "
        "minimal-pairs: folder with a .jsonl per paradigm; masked-words: text file or a folder of them",
    )
    own = evaluate.add_argument_group("your own data")
    own.add_argument("--train", metavar="FILE", help="rows to train on: csv, tsv, jsonl, parquet; ner: CoNLL columns")
    own.add_argument("--validation", metavar="FILE", help="rows to score")
    own.add_argument("--text", metavar="COLUMN", help="column of the text (default: text)")
    own.add_argument("--text-pair", metavar="COLUMN", help="column of the second text of a pair")
    own.add_argument("--label", metavar="COLUMN", help="column of the label (default: label)")
    own.add_argument("--type", metavar="NAME", help="classification, regression or ner (default: classification)")
    evaluate.add_argument("--tasks", metavar="A,B", help="run only these tasks of the protocol")
    evaluate.add_argument(
        "--seeds", type=at_least_one, metavar="N", help="seeds per task (default: the protocol's value)"
    )
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
        "--jobs", type=at_least_one, metavar="N", help="parallel processes on a CPU (default: one per core, up to 8)"
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
    if options.suite is None and not any(getattr(options, name) for name in _OWN_DATA_OPTIONS):
        options.suite = _default_glue(options.models)
    protocol = requested_protocol(options)
    with messages_to_stderr(options.json):
        results, table, failures = _EVALUATIONS[protocol.kind](options, protocol)
    rows = options.output / f"{protocol.name}.json"
    if options.json:
        print_json(read_json(rows))
    else:
        print(f"{table}\n\nresults: {options.output / results}, table: {rows}")
    return exit_status(failures, "jobs failed; run the same command to retry them")


def requested_protocol(options: argparse.Namespace) -> Any:
    """Compose the protocol that the options ask for, without looking at data. Raises CramError."""
    from cram_composer.config.protocols import compose_protocol, protocol_kind

    suite = options.suite or ("glue" if options.train is None else "own-data")
    kind = protocol_kind(suite)
    own = {name: value for name in _OWN_DATA_OPTIONS if (value := getattr(options, name)) is not None}
    if own and kind != "own-data":
        remedy = "add --train and --validation" if options.suite is None else f"remove --suite {suite}"
        raise CramError(f"--{next(iter(own)).replace('_', '-')}: is for your own data; {remedy}")
    if kind in ("minimal-pairs", "masked-words"):
        for name in ("seeds", "tasks", "jobs", "slurm"):
            if getattr(options, name) is not None:
                raise CramError(f"--{name}: has no effect with a protocol of kind {kind}; remove it")
    overrides = [*options.set, *overrides_from(seeds=options.seeds)]
    if kind == "own-data":
        return _own_data_protocol(suite, own, overrides, options.tasks)
    tasks = None if options.tasks is None else f"[{options.tasks}]"
    return compose_protocol(suite, [*overrides, *overrides_from(tasks=tasks)]).config


def _default_glue(models: list[str]) -> str:
    """Return the GLUE protocol for these models, and say so if it is not the paper's. Raises CramError."""
    from cram_composer.evaluation.model_source import find_model

    if max(find_model(name).hidden_size for name in models) > _COMPACT_WIDTH:
        return "glue"
    why = f"no model is wider than {_COMPACT_WIDTH}; the rules of a cram are --suite glue"
    print(f"eval: suite glue-compact, since {why}", file=sys.stderr)
    return "glue-compact"


def _own_data_protocol(suite: str, own: dict[str, str], overrides: list[str], names: str | None) -> Any:
    from cram_composer.config.protocols import compose_protocol

    if own:
        if missing := [f"--{name}" for name in ("train", "validation") if name not in own]:
            raise CramError(f"{missing[0]}: required for your own data")
        name = _task_name(Path(own["train"]))
        overrides = [f"name=own-data-{name}", f"tasks={json.dumps({name: own})}", *overrides]
    protocol = compose_protocol(suite, overrides).config
    if not protocol.tasks:
        raise CramError(f"--suite {suite}: no tasks; add --train and --validation, or list files under tasks")
    chosen = list(protocol.tasks) if names is None else names.split(",")
    if unknown := [name for name in chosen if name not in protocol.tasks]:
        raise CramError(f"--tasks: {not_one_of(unknown[0], protocol.tasks)}")
    protocol.tasks = {name: protocol.tasks[name] for name in chosen}
    return protocol


def _task_name(train: Path) -> str:
    """Return a name for the task of a train file: the file's, or its folder's if the file is only called train."""
    name = train.name.partition(".")[0]
    if name.lower() in ("train", "training"):
        name = train.resolve().parent.name or name
    return re.sub(r"\W+", "-", name).strip("-") or "own"


def _fine_tuning(options: argparse.Namespace, protocol: Any) -> Evaluated:
    slurm = slurm_parameters(options.slurm)
    if options.jobs is not None and slurm is not None:
        raise CramError("--jobs: has no effect with --slurm; use --slurm slurm_array_parallelism=N")
    if options.data is not None and protocol.kind == "own-data":
        raise CramError("--data: has no effect with your own files; remove it")
    from cram_composer.evaluation.fine_tuning.suite import evaluate_models

    table, failures = evaluate_models(
        options.models,
        protocol,
        data=options.data,
        folder=options.output,
        device=options.device,
        jobs=options.jobs,
        slurm=slurm,
    )
    return "results.jsonl", table, failures


def _zero_shot(options: argparse.Namespace, protocol: Any) -> Evaluated:
    if options.data is None:
        raise CramError(f"--data: required by a protocol of kind {protocol.kind}; name the files to score")
    from cram_composer.evaluation.zero_shot.score import RESULTS_FILE, score_models

    table, failures = score_models(
        options.models, protocol, data=options.data, folder=options.output, device=options.device
    )
    return RESULTS_FILE, table, failures


_EVALUATIONS: dict[str, Callable[[argparse.Namespace, Any], Evaluated]] = {
    "fine-tuning": _fine_tuning,
    "own-data": _fine_tuning,
    "similarity": _fine_tuning,
    "minimal-pairs": _zero_shot,
    "masked-words": _zero_shot,
}
