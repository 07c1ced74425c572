"""`cram eval`: fine-tune models by a protocol on every task with every seed, and write what came out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cram_composer.config.schema.evaluation import ProtocolConfig
from cram_composer.config.units import format_duration
from cram_composer.device import device_kind, fast_precision
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.execution import run_jobs
from cram_composer.evaluation.fine_tuning.jobs import Job, plan_jobs
from cram_composer.evaluation.fine_tuning.results import Result, ResultKey, append_result, read_results
from cram_composer.evaluation.fine_tuning.table import console_table, model_row
from cram_composer.evaluation.model_source import ModelSource, find_model
from cram_composer.storage.files import read_json, write_json

NO_GPU = "use --device cpu"  # where one was asked for
RUN_FILE = "evaluations.json"  # in the folder of a run: its rows by protocol, for its page
_LINE_EVERY_SECONDS = 30.0


def evaluate_models(
    names: Sequence[str],
    protocol: ProtocolConfig,
    *,
    data: Path | None = None,
    folder: Path = Path("runs/eval"),
    device: str = "auto",
    jobs: int | None = None,
    slurm: dict[str, Any] | None = None,
) -> tuple[str, list[str]]:
    """Do what is not yet in FOLDER/results.jsonl, and write FOLDER/PROTOCOL.json with a row for each model.

    Args:
        names: run folders, model folders, or names of the hub; see `find_model`.
        protocol: how to fine-tune and on what.
        data: folder of the tasks' files, or None for the hub.
        folder: of the results, to which later evaluations append.
        device: "auto", "cuda" or "cpu".
        jobs: processes at a time on a CPU; by default one for every core, up to 8.
        slurm: submitit's parameters, to run the jobs as Slurm arrays in place of here.

    Returns:
        The table, and a line for every job that failed.

    Raises:
        CramError: bad models, data or settings; nothing has been trained then.
    """
    models = [find_model(name) for name in names]
    models = list({model.hash: model for model in models}.values())
    device = device_kind(device, NO_GPU)
    precision = precision_on(protocol.precision, device)
    for model in models:
        model.check_loadable()
    planned = plan_jobs(models, protocol, data, precision, folder)
    path = folder / "results.jsonl"
    found = {result.key: result for result in read_results(path)}
    left = _to_do(planned, found)
    progress = _Progress(len(planned), len(planned) - len(left))
    failures = []
    if left:
        with closing(run_jobs(left, device, jobs, slurm, folder / "slurm", progress.report)) as ended:
            for job, results, error in ended:
                for result in results:
                    append_result(path, result)
                    found[result.key] = result
                if error:
                    failures.append(error)
                progress.ended(job, results, error)
    progress.close()
    rows = []
    for model in models:
        own = [found[key] for job in planned if job.model == model for key in job.keys if key in found]
        rows.append(model_row(protocol, model.name, model.hash, own, model.row_length(protocol.max_length)))
    write_json(folder / f"{protocol.name}.json", {"rows": rows, "failures": failures})
    add_to_runs(models, protocol.name, rows)
    return console_table(protocol, rows), failures


def _to_do(planned: list[Job], found: dict[ResultKey, Result]) -> list[Job]:
    """The jobs without results; of those with, the ones whose model another goes on from and that is gone."""
    left = [job for job in planned if any(key not in found for key in job.keys)]
    starts = {job.start for job in left if job.start is not None and not (job.start / "config.json").is_file()}
    return [job for job in planned if job in left or job.keep in starts]


def precision_on(asked: str, device: str) -> str:
    """ "bf16", "fp16" or "fp32" for one of them or "auto". Raises CramError for what the device has not."""
    if asked == "fp16" and device == "cpu":
        raise CramError("precision: fp16 needs a GPU; use bf16 or fp32")
    return fast_precision(device) if asked == "auto" else asked


def add_to_runs(models: Sequence[ModelSource], protocol: str, rows: Sequence[dict[str, Any]]) -> None:
    """Keep the rows, one for each model, in the folders of those that are runs, as scores by `protocol`."""
    for model, row in zip(models, rows, strict=True):
        if not model.untrained and (Path(model.name) / "record.json").is_file():
            add_to_run(Path(model.name), protocol, row)


def add_to_run(run: Path, protocol: str, row: dict[str, Any]) -> None:
    """Keep the row in the run's folder, and draw its page anew."""
    from cram_composer.analysis.report.report import write_report

    path = run / RUN_FILE
    rows = read_json(path) if path.is_file() else {}
    write_json(path, {**rows, protocol: row})
    write_report([run])


class _Progress:
    """A bar on a terminal, elsewhere a line every 30 s and for every job that ends."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._started = self._last = time.monotonic()
        self._ended = 0
        self._bar: tqdm | None = None
        if sys.stderr.isatty() and total > done:
            form = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} gone, {remaining} left"
            self._bar = tqdm(total=total - done, desc="eval", bar_format=form)
        elif done:
            self._say(f"{done} of {total} jobs are in the results already")

    def report(self, done: float) -> None:
        """So many jobs are done, running ones by their share."""
        if self._bar is not None:
            self._bar.n = done
            self._bar.refresh()
        elif time.monotonic() - self._last >= _LINE_EVERY_SECONDS and done:
            gone = time.monotonic() - self._started
            left = gone / done * (self._total - self._done - done)
            self._say(f"{self._done + done:.1f} of {self._total} jobs, about {format_duration(left)} left")

    def ended(self, job: Job, results: Sequence[Result], error: str) -> None:
        """Print the outcome of a job."""
        self._ended += 1
        where = f"{self._done + self._ended} of {self._total}"
        if error:
            self._say(f"{where}: failed: {error}")
            return
        shown = "; ".join(
            f"{split} {metric} {value:.1f}"
            for result in results
            for split, scores in result.scores.items()
            for metric, value in scores.items()
        )
        first = results[0]
        self._say(
            f"{where}: {job.title}: {shown} ({format_duration(first.seconds)}, "
            f"{first.examples_per_second:,.0f} examples/s)"
        )

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        self._last = time.monotonic()
        tqdm.write(f"eval: {line}", file=sys.stderr)
        sys.stderr.flush()
