"""Compare fine-tuning by `cram eval` with a plain `transformers` Trainer: examples/s, in alternation, and scores.

python -m benchmarks.fine_tuning runs/RUN GLUE cola
python -m benchmarks.fine_tuning untrained:runs/RUN GLUE rte --epochs 1 --padding max
python -m benchmarks.fine_tuning runs/RUN GLUE rte --jobs 2

Both fine-tune the same model class from the same weights with the settings of yamls/eval/glue.yaml: rate, schedule,
batch size, precision, threads. The Trainer is used as documented: torch's AdamW, rows in random order, each batch
padded to its longest row (`--padding longest`), or every row to 128 tokens as in its GLUE example (`--padding max`).
With `--jobs N`, this project fine-tunes N seeds at a time like `cram eval` on N or more cores, each with its share of
the threads; the Trainer uses all threads for one seed. Loading, encoding and scoring are not timed on either side.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments

from benchmarks.short_run import spread
from cram_composer.config.schema.evaluation import ProtocolConfig
from cram_composer.device import fast_precision
from cram_composer.evaluation.fine_tuning.encode import EncodedRows, encode
from cram_composer.evaluation.fine_tuning.fine_tune import evaluate, fine_tune
from cram_composer.evaluation.model_source import ModelSource, find_model
from cram_composer.evaluation.tasks.benchmarks import find_task
from cram_composer.evaluation.tasks.examples import read_split
from cram_composer.evaluation.tasks.task import Task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model, as for `cram eval`")
    parser.add_argument("data", type=Path, help="folder of GLUE's files")
    parser.add_argument("task", help="name of a task, such as cola")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="seeds 1, 2, ...; both sides fine-tune with each")
    parser.add_argument("--padding", choices=("longest", "max"), default="longest", help="padding by the Trainer")
    parser.add_argument("--jobs", type=int, default=1, help="concurrent jobs of cram eval, which share the threads")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=fast_precision("cpu"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = ProtocolConfig(epochs=options.epochs)
    task, model = find_task(options.task, "task"), find_model(options.model)
    tokenizer = model.load_tokenizer()
    rows = {}
    for name in task.sizes:
        split = read_split(task, name, options.data)
        rows[name] = encode(split, tokenizer, settings.max_length, model.has_token_types)
    ratios, scores = [], []
    for seed in range(1, options.repeats + 1):
        sides = [_ours, _trainer] if seed % 2 else [_trainer, _ours]
        found = {side: side(model, task, rows, settings, seed, options) for side in sides}
        (ours, our_score), (theirs, their_score) = found[_ours], found[_trainer]
        ratios.append(ours / theirs)
        scores.append((our_score, their_score))
        print(
            f"seed {seed}: {ours:,.0f} examples/s, {task.metrics[0]} {our_score:.1f}; Trainer {theirs:,.0f}/s, "
            f"{task.metrics[0]} {their_score:.1f}; {ratios[-1]:.2f} times",
            flush=True,
        )
    means = [statistics.fmean(side) for side in zip(*scores, strict=True)]
    setting = f"{options.epochs} epochs, {options.precision}, {options.threads} threads, {options.jobs} job(s)"
    print(
        f"{options.task}, {setting}, Trainer pads to {options.padding}: {spread(ratios)} times; mean "
        f"{task.metrics[0]} {means[0]:.1f} against {means[1]:.1f}"
    )


def _fresh(model: ModelSource, task: Task, settings: ProtocolConfig, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return model.load_classifier(task.num_labels, settings.dropout)


def _ours(
    model: ModelSource, task: Task, rows: dict[str, EncodedRows], settings: ProtocolConfig, seed: int, options: Any
) -> tuple[float, float]:
    """Return examples/s of training, summed over jobs, and the first metric of the job with `seed`."""
    if options.jobs == 1:
        return _job(model, task, rows, settings, seed, options.threads, options.precision)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        threads = max(1, options.threads // options.jobs)
        jobs = [
            pool.submit(_job, model, task, rows, settings, seed + 1000 * number, threads, options.precision)
            for number in range(options.jobs)
        ]
        rates, scores = zip(*(job.result() for job in jobs), strict=True)
    return sum(rates), scores[0]


def _job(
    model: ModelSource,
    task: Task,
    rows: dict[str, EncodedRows],
    settings: ProtocolConfig,
    seed: int,
    threads: int,
    precision: str,
) -> tuple[float, float]:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    outcome = fine_tune(_fresh(model, task, settings, seed), task, rows, settings, seed, device, precision)
    return outcome.examples_per_second, outcome.scores[task.scored[0]][task.metrics[0]]


def _trainer(
    model: ModelSource, task: Task, rows: dict[str, EncodedRows], settings: ProtocolConfig, seed: int, options: Any
) -> tuple[float, float]:
    """Return the same for the Trainer, whose model is scored by `cram eval`."""
    network = _fresh(model, task, settings, seed)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.lr,
            lr_scheduler_type=settings.schedule,
            warmup_ratio=settings.warmup,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.betas[0],
            adam_beta2=settings.betas[1],
            adam_epsilon=settings.eps,
            max_grad_norm=0.0,
            bf16=options.precision == "bf16",
            use_cpu=True,
            seed=seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        padding: Any = {"padding": True, "pad_to_multiple_of": 8}
        if options.padding == "max":
            padding = {"padding": "max_length", "max_length": settings.max_length}
        trainer = Trainer(
            network,
            arguments,
            train_dataset=_Rows(rows["train"]),  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(model.load_tokenizer(), **padding),
        )
        done = trainer.train().metrics
    found = evaluate(network, task, rows[task.scored[0]], settings, torch.device("cpu"), options.precision)
    return settings.epochs * rows["train"].size / done["train_runtime"], found[task.metrics[0]]


class _Rows(torch.utils.data.Dataset):
    """Rows in the format of the Trainer."""

    def __init__(self, rows: EncodedRows) -> None:
        parts = rows.lengths.tolist()
        self._columns = {"input_ids": [part.tolist() for part in rows.ids.split(parts)]}
        if rows.types is not None:
            self._columns["token_type_ids"] = [part.tolist() for part in rows.types.split(parts)]
        self._columns["label"] = rows.labels.tolist()

    def __len__(self) -> int:
        return len(self._columns["label"])

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {name: values[at] for name, values in self._columns.items()}


if __name__ == "__main__":
    main()
