"""Fine-tuning jobs: one for every model, task and seed of an evaluation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from cram_composer.config.schema.evaluation import (
    ClassificationConfig,
    FineTuningProtocol,
    ProtocolConfig,
    SimilarityConfig,
    TaskSettingsConfig,
)
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.encode import EncodedRows, encode, encode_texts, encode_words
from cram_composer.evaluation.fine_tuning.fine_tune import Model, evaluate, fine_tune, task_settings
from cram_composer.evaluation.fine_tuning.heads import PairEmbedder, TextClassifier, WordTagger
from cram_composer.evaluation.fine_tuning.results import Result, ResultKey, settings_hash
from cram_composer.evaluation.model_source import ModelSource
from cram_composer.evaluation.tasks.benchmarks import find_task, tasks_of
from cram_composer.evaluation.tasks.examples import read_split
from cram_composer.evaluation.tasks.task import Task

HELD_OUT = "held-out"  # name of the rows that settings are selected on
_ENCODERS = {"sequence": encode, "words": encode_words, "embedding": encode_texts}
_FROM_MNLI = ("rte", "mrpc", "stsb")


@dataclass(frozen=True)
class Job:
    """Fine-tune `model` on `task` with `seed`, and score it on the task and on its `diagnostics`.

    Attributes:
        diagnostics: tasks without training rows, scored with the same fine-tuned model.
        hashes: hash of the settings, by scored task.
        held_out: share of the train rows that the job does not train on, and scores instead of the task's splits.
        init_from: folder of a fine-tuned model to start from.
        save_to: folder for the fine-tuned model.
    """

    model: ModelSource
    task: Task
    diagnostics: tuple[Task, ...]
    seed: int
    settings: FineTuningProtocol
    data: Path | None
    precision: str
    hashes: dict[str, str]
    held_out: float = 0.0
    init_from: Path | None = None
    save_to: Path | None = None

    @property
    def title(self) -> str:
        """Name on the console."""
        chosen = f", batch_size {self.settings.batch_size}, lr {self.settings.lr:g}" if self.held_out else ""
        return f"{self.model.name}, {self.task.title}, seed {self.seed}{chosen}"

    @property
    def keys(self) -> list[ResultKey]:
        """Keys of the job's results."""
        return [
            (self.model.hash, self.hashes[task.name], task.name, self.seed) for task in (self.task, *self.diagnostics)
        ]


def plan_jobs(
    models: Sequence[ModelSource], protocol: FineTuningProtocol, data: Path | None, precision: str, folder: Path
) -> list[Job]:
    """Plan all jobs of the protocol; a job that starts from the model of another comes after it.

    Reads every split, so that errors in the data are found before any training.

    Args:
        models: models to evaluate.
        protocol: tasks, seeds and settings.
        data: folder of the tasks' files, or None for the hub.
        precision: "bf16", "fp16" or "fp32".
        folder: folder for the models of MNLI that other tasks start from.

    Raises:
        CramError: an unknown task, or data that cannot be read.
    """
    known = tasks_of(protocol)
    tasks = [find_task(name, f"tasks of {protocol.name}", known) for name in protocol.tasks]
    for name in protocol.overrides:
        find_task(name, f"overrides of {protocol.name}", known)
    names = [task.name for task in tasks]
    for task in tasks:
        if task.trained_on and task.trained_on not in names:
            raise CramError(f"tasks: {task.name} is scored with the model of {task.trained_on}; add {task.trained_on}")
    mnli_start = isinstance(protocol, ProtocolConfig) and protocol.mnli_start
    from_mnli = [name for name in names if name in _FROM_MNLI and mnli_start]
    if from_mnli and "mnli" not in names:
        raise CramError(f"mnli_start: {', '.join(from_mnli)} start from the MNLI model; add mnli to tasks")
    mnli_hash = ""  # hash of the settings of MNLI
    if from_mnli:
        mnli_hash = settings_hash(task_settings(protocol, "mnli"), _digests(known["mnli"], data), precision)
    jobs = []
    for task in sorted(tasks, key=lambda task: task.name in from_mnli):
        if task.trained_on:
            continue
        settings = task_settings(protocol, task.name)
        if mnli_start:
            settings = settings.model_copy(update={"mnli_start": task.name in from_mnli})
        diagnostics = tuple(diagnostic for diagnostic in tasks if diagnostic.trained_on == task.name)
        digests = _digests(task, data)
        if task.name in from_mnli:
            digests["start"] = mnli_hash
        hashes = {task.name: settings_hash(settings, digests, precision)}
        for diagnostic in diagnostics:
            hashes[diagnostic.name] = settings_hash(settings, {**digests, **_digests(diagnostic, data)}, precision)
        for model in models:
            mnli_folder = folder / f"mnli-{model.hash.replace('/', '-').replace(':', '-')}-{mnli_hash}"
            for seed in range(1, settings.seeds + 1):
                job = Job(model, task, diagnostics, seed, settings, data, precision, hashes)
                if task.name == "mnli" and from_mnli and seed == 1:
                    job = replace(job, save_to=mnli_folder)
                jobs.append(replace(job, init_from=mnli_folder) if task.name in from_mnli else job)
    return jobs


def plan_selection(
    models: Sequence[ModelSource], protocol: ProtocolConfig, data: Path | None, precision: str
) -> list[Job]:
    """Plan the jobs of the protocol's grid, one for every setting of every task, with one seed. Raises CramError."""
    assert protocol.grid is not None
    jobs = []
    for name in protocol.tasks:
        task = find_task(name, f"tasks of {protocol.name}", tasks_of(protocol))
        if task.trained_on:
            continue
        digests = {**_digests(task, data), "held out": str(protocol.grid.held_out)}
        points = itertools.product(models, protocol.grid.batch_size, protocol.grid.lr)  # a model's rows are kept
        for model, batch_size, lr in points:
            chosen = {"batch_size": batch_size, "lr": lr, "grid": None}
            settings = task_settings(protocol, name).model_copy(update=chosen)
            hashes = {name: settings_hash(settings, digests, precision)}
            jobs.append(Job(model, task, (), 1, settings, data, precision, hashes, held_out=protocol.grid.held_out))
    return jobs


def select_settings(
    protocol: ProtocolConfig, model: ModelSource, jobs: Sequence[Job], found: Mapping[ResultKey, Result]
) -> ProtocolConfig:
    """Return the protocol with the best settings of each task for `model`; tasks without a result are left out.

    Args:
        protocol: with a grid.
        model: the model.
        jobs: of `plan_selection`; of equal scores, that of the first job wins.
        found: their results.
    """
    best: dict[str, tuple[float, Job]] = {}
    for job in jobs:
        if job.model == model and job.keys[0] in found:
            score = found[job.keys[0]].scores[HELD_OUT][job.task.metrics[0]]
            if job.task.name not in best or score > best[job.task.name][0]:
                best[job.task.name] = score, job
    overrides = dict(protocol.overrides)
    for name, (_, job) in best.items():
        chosen = {"batch_size": job.settings.batch_size, "lr": job.settings.lr}
        overrides[name] = overrides.get(name, TaskSettingsConfig()).model_copy(update=chosen)
    known = tasks_of(protocol)
    tasks = [name for name in protocol.tasks if name in best or known[name].trained_on in best]
    return protocol.model_copy(update={"grid": None, "tasks": tasks, "overrides": overrides})


def run_job(job: Job, device: torch.device, report: Callable[[float], None] = lambda progress: None) -> list[Result]:
    """Run a job on `device`; calls `report` with the share of its steps that are done. Raises CramError."""
    rows, sizes, partial = _rows(
        job.model, job.task, job.settings.max_length, job.data, _reads_sides(job), job.held_out
    )
    task = replace(job.task, scored=(HELD_OUT,)) if job.held_out else job.task
    torch.manual_seed(job.seed)
    source = job.model if job.init_from is None else replace(job.model, source=str(job.init_from), untrained=False)
    sides = rows["train"].sides
    model = _load_model(source, task, job.settings, pairs=sides is not None and bool((sides == 2).any()))
    outcome = fine_tune(model, task, rows, job.settings, job.seed, device, job.precision, report)
    if job.save_to is not None:
        assert isinstance(model, PreTrainedModel)
        model.save_pretrained(job.save_to)
    result = Result(
        model=job.model.name,
        model_hash=job.model.hash,
        settings_hash=job.hashes[job.task.name],
        benchmark=job.settings.benchmark,
        task=job.task.name,
        seed=job.seed,
        scores=outcome.scores,
        rows=sizes,
        partial=partial,
        mnli_start=job.init_from is not None,
        steps=outcome.steps,
        seconds=outcome.seconds,
        examples_per_second=outcome.examples_per_second,
        train_loss=outcome.train_loss,
        device=_device_name(device),
        precision=job.precision,
    )
    results = [result]
    for diagnostic in job.diagnostics:
        rows, sizes, partial = _rows(job.model, diagnostic, job.settings.max_length, job.data, _reads_sides(job))
        scores = {
            split: evaluate(model, diagnostic, rows[split], job.settings, device, job.precision)
            for split in diagnostic.scored
        }
        results.append(
            replace(
                result,
                task=diagnostic.name,
                settings_hash=job.hashes[diagnostic.name],
                scores=scores,
                rows={**result.rows, **sizes},
                partial=[*result.partial, *partial],
            )
        )
    return results


def _reads_sides(job: Job) -> bool:
    return job.task.head == "sequence" and getattr(job.settings, "pooling", None) == "pair"


def _load_model(source: ModelSource, task: Task, settings: FineTuningProtocol, pairs: bool) -> Model:
    """Load the encoder with a new head for the task, drawn from torch's generator. Raises CramError."""
    if isinstance(settings, SimilarityConfig):
        return PairEmbedder(source.load_encoder(settings.dropout), settings.temperature)
    if task.head == "words":
        return WordTagger(source.load_encoder(settings.dropout), task.num_labels, settings.dropout)
    if isinstance(settings, ClassificationConfig) and settings.pooling is not None:
        encoder = source.load_encoder(settings.dropout)
        return TextClassifier(encoder, task.num_labels, settings.dropout, settings.pooling, pairs)
    return source.load_classifier(task.num_labels, settings.dropout)


def _digests(task: Task, data: Path | None) -> dict[str, str]:
    own = "own " if task.files else ""  # a user's task may have the name and the rows of a benchmark's
    return {f"{own}{task.name} {name}": read_split(task, name, data).digest for name in task.sizes}


@functools.lru_cache(maxsize=4)  # the seeds of a task run one after another
def _rows(
    model: ModelSource, task: Task, max_length: int, data: Path | None, sides: bool, held_out: float = 0.0
) -> tuple[dict[str, EncodedRows], dict[str, int], list[str]]:
    """Return the encoded splits of a task, their sizes, and the names of those without the official size.

    With `held_out`, the splits are two parts of the train rows.
    """
    tokenizer = model.load_tokenizer()
    encoded, sizes, partial = {}, {}, []
    if held_out:
        splits = read_split(task, "train", data).divide(held_out, HELD_OUT)
    else:
        splits = [read_split(task, part, data) for part in task.sizes]
    for split in splits:
        part = split.name
        if task.head == "embedding" and part == "train":
            split = split.only_from(task.similar_from)
        encode_split = functools.partial(encode, sides=True) if sides else _ENCODERS[task.head]
        encoded[part] = encode_split(split, tokenizer, model.row_length(max_length), token_types=model.has_token_types)
        sizes[part] = split.rows
        if not split.is_complete:
            partial.append(part)
    return encoded, sizes, partial


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
