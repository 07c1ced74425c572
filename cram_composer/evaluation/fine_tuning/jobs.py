"""The jobs of an evaluation: every task with every seed, of every model. One job fine-tunes once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cram_composer.config.schema.evaluation import ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.benchmarks import find_task
from cram_composer.evaluation.fine_tuning.encode import EncodedRows, encode
from cram_composer.evaluation.fine_tuning.examples import read_split
from cram_composer.evaluation.fine_tuning.fine_tune import evaluate, fine_tune, task_settings
from cram_composer.evaluation.fine_tuning.results import Result, ResultKey, settings_hash
from cram_composer.evaluation.fine_tuning.tasks import Task
from cram_composer.evaluation.model_source import ModelSource

_FROM_MNLI = ("rte", "mrpc", "stsb")


@dataclass(frozen=True)
class Job:
    """Fine-tune `model` on `task` with `seed`, and score it there and on the `riders`, which have no training rows.

    `hashes` are the settings' by scored task; `start` is the folder of a fine-tuned model to go on from, `keep` the
    folder in which this one's is kept; `after` is the job whose model it goes on from.
    """

    model: ModelSource
    task: Task
    riders: tuple[Task, ...]
    seed: int
    settings: ProtocolConfig
    data: Path | None
    precision: str
    hashes: dict[str, str]
    start: Path | None = None
    keep: Path | None = None

    @property
    def title(self) -> str:
        """What it is called on the console."""
        return f"{self.model.name}, {self.task.title}, seed {self.seed}"

    @property
    def keys(self) -> list[ResultKey]:
        """Of the results that it makes."""
        return [(self.model.hash, self.hashes[task.name], task.name, self.seed) for task in (self.task, *self.riders)]


def plan_jobs(
    models: Sequence[ModelSource], protocol: ProtocolConfig, data: Path | None, precision: str, folder: Path
) -> list[Job]:
    """All jobs of the protocol, in an order in which a job that another goes on from comes before it.

    Every split is read here, so that a mistake in the data is found before anything is trained.

    Args:
        models: to evaluate.
        protocol: what to do.
        data: folder of the tasks' files, or None for the hub.
        precision: "bf16", "fp16" or "fp32".
        folder: in which the models of MNLI are kept for the tasks that go on from them.

    Raises:
        CramError: an unknown task, or data that cannot be read.
    """
    tasks = [find_task(name, f"tasks of {protocol.name}", protocol.benchmark) for name in protocol.tasks]
    for name in protocol.overrides:
        find_task(name, f"overrides of {protocol.name}", protocol.benchmark)
    names = [task.name for task in tasks]
    for task in tasks:
        if task.trained_on and task.trained_on not in names:
            raise CramError(f"tasks: {task.name} is scored with the model of {task.trained_on}; add {task.trained_on}")
    from_mnli = [name for name in names if name in _FROM_MNLI and protocol.mnli_start]
    if from_mnli and "mnli" not in names:
        raise CramError(f"mnli_start: {', '.join(from_mnli)} go on from the model of mnli; add mnli to tasks")
    of_mnli = ""  # of what the models of MNLI are fine-tuned with
    if from_mnli:
        of_mnli = settings_hash(task_settings(protocol, "mnli"), _digests(find_task("mnli", "tasks"), data), precision)
    jobs = []
    for task in sorted(tasks, key=lambda task: task.name in from_mnli):
        if task.trained_on:
            continue
        settings = task_settings(protocol, task.name).model_copy(update={"mnli_start": task.name in from_mnli})
        riders = tuple(rider for rider in tasks if rider.trained_on == task.name)
        digests = _digests(task, data)
        if task.name in from_mnli:
            digests["start"] = of_mnli
        hashes = {task.name: settings_hash(settings, digests, precision)}
        for rider in riders:
            hashes[rider.name] = settings_hash(settings, {**digests, **_digests(rider, data)}, precision)
        for model in models:
            kept = folder / f"mnli-{model.hash.replace('/', '-').replace(':', '-')}-{of_mnli}"
            for seed in range(1, settings.seeds + 1):
                job = Job(model, task, riders, seed, settings, data, precision, hashes)
                if task.name == "mnli" and from_mnli and seed == 1:
                    job = replace(job, keep=kept)
                jobs.append(replace(job, start=kept) if task.name in from_mnli else job)
    return jobs


def run_job(job: Job, device: torch.device, report: Callable[[float], None] = lambda progress: None) -> list[Result]:
    """Do a job on `device`; `report` is told the share of its steps that are done. Raises CramError."""
    rows, sizes, partial = _rows(job.model, job.settings.benchmark, job.task.name, job.settings.max_length, job.data)
    torch.manual_seed(job.seed)
    source = job.model if job.start is None else replace(job.model, source=str(job.start), untrained=False)
    model = source.load_classifier(job.task.num_labels, job.settings.dropout)
    outcome = fine_tune(model, job.task, rows, job.settings, job.seed, device, job.precision, report)
    if job.keep is not None:
        model.save_pretrained(job.keep)
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
        mnli_start=job.start is not None,
        steps=outcome.steps,
        seconds=outcome.seconds,
        examples_per_second=outcome.examples_per_second,
        train_loss=outcome.train_loss,
        device=_device_name(device),
        precision=job.precision,
    )
    made = [result]
    for rider in job.riders:
        rows, sizes, partial = _rows(job.model, job.settings.benchmark, rider.name, job.settings.max_length, job.data)
        scores = {
            split: evaluate(model, rider, rows[split], job.settings, device, job.precision) for split in rider.scored
        }
        made.append(
            replace(
                result,
                task=rider.name,
                settings_hash=job.hashes[rider.name],
                scores=scores,
                rows={**result.rows, **sizes},
                partial=[*result.partial, *partial],
            )
        )
    return made


def _digests(task: Task, data: Path | None) -> dict[str, str]:
    return {f"{task.name} {name}": read_split(task, name, data).digest for name in task.sizes}


@functools.lru_cache(maxsize=4)  # the seeds of a task follow each other
def _rows(
    model: ModelSource, benchmark: str, name: str, max_length: int, data: Path | None
) -> tuple[dict[str, EncodedRows], dict[str, int], list[str]]:
    """The encoded splits of a task, their sizes, and the names of those that have not the official size."""
    task, tokenizer = find_task(name, "job", benchmark), model.load_tokenizer()
    encoded, sizes, partial = {}, {}, []
    for part in task.sizes:
        split = read_split(task, part, data)
        encoded[part] = encode(split, tokenizer, model.row_length(max_length), token_types=model.has_token_types)
        sizes[part] = split.rows
        if not split.is_complete:
            partial.append(part)
    return encoded, sizes, partial


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
