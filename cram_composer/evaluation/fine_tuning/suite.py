"""`cram eval`: fine-tune models by a protocol on every task with every seed, and write the table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cram_composer.config.schema.evaluation import FineTuningProtocol, ProtocolConfig
from cram_composer.config.units import format_duration
from cram_composer.device import device_kind, fast_precision
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.execution import run_jobs
from cram_composer.evaluation.fine_tuning.jobs import Job, plan_jobs, plan_selection, select_settings
from cram_composer.evaluation.fine_tuning.results import Result, ResultKey, append_result, read_results
from cram_composer.evaluation.fine_tuning.table import console_table, model_row
from cram_composer.evaluation.model_source import ModelSource, find_model
from cram_composer.storage.files import read_json, write_json

RUN_FILE = "evaluations.json"  # in a run folder: rows by protocol, for the report of the run
_LINE_EVERY_SECONDS = 30.0


def evaluate_models(
    names: Sequence[str],
    protocol: FineTuningProtocol,
    *,
    data: Path | None,
    folder: Path,
    device: str,
    jobs: int | None,
    slurm: dict[str, Any] | None,
) -> tuple[str, list[str]]:
    """Run the jobs that have no result in FOLDER/results.jsonl; write FOLDER/PROTOCOL.json with a row per model.

    Args:
        names: run folders, model folders, or names on the hub; see `find_model`.
        protocol: tasks, seeds and settings.
        data: folder of the tasks' files, or None for the hub.
        folder: folder of the results, to which later evaluations append.
        device: "auto", "cuda" or "cpu".
        jobs: jobs at a time on a CPU; default: one per core, up to 8.
        slurm: submitit's parameters, to run the jobs as Slurm arrays.

    Returns:
        The table, and one line for every job that failed.

    Raises:
        CramError: invalid models, data or settings; raised before any training.
    """
    models, device = open_models(names, device)
    if jobs is not None and device == "cuda":
        raise CramError("--jobs: has no effect on GPUs, which run one job each at a time; remove it")
    precision = precision_on(protocol.precision, device)
    path = folder / "results.jsonl"
    found = {result.key: result for result in read_results(path)}
    failures: list[str] = []

    def run(planned: Sequence[Job]) -> None:
        left = _pending_jobs(planned, found)
        progress = _Progress(len(planned), len(planned) - len(left))
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

    chosen = dict.fromkeys(models, protocol)
    planned = plan_jobs(models, protocol, data, precision, folder)
    if isinstance(protocol, ProtocolConfig) and protocol.grid is not None:
        selection = plan_selection(models, protocol, data, precision)
        run(selection)
        chosen = {model: select_settings(protocol, model, selection, found) for model in models}
        planned = [job for model in models for job in plan_jobs([model], chosen[model], data, precision, folder)]
    run(planned)
    rows = []
    for model in models:
        own = [found[key] for job in planned if job.model == model for key in job.keys if key in found]
        length = model.row_length(protocol.max_length)
        selected = chosen[model].overrides if chosen[model] is not protocol else {}
        rows.append(model_row(protocol, model.name, model.hash, own, length, selected))
    write_json(folder / f"{protocol.name}.json", {"rows": rows, "failures": failures})
    add_to_runs(models, protocol.name, rows)
    return console_table(protocol, rows), failures


def open_models(names: Sequence[str], device: str) -> tuple[list[ModelSource], str]:
    """Return the different models of these names, and "cuda" or "cpu". Raises CramError if one cannot be loaded."""
    models = {model.hash: model for model in map(find_model, names)}
    kind = device_kind(device, "use --device cpu")
    for model in models.values():
        model.check_loadable()
    return list(models.values()), kind


def _pending_jobs(planned: Sequence[Job], found: dict[ResultKey, Result]) -> list[Job]:
    """Return the jobs without results, and those whose model is missing and needed by another job."""
    left = [job for job in planned if any(key not in found for key in job.keys)]
    starts = {
        job.init_from for job in left if job.init_from is not None and not (job.init_from / "config.json").is_file()
    }
    return [job for job in planned if job in left or job.save_to in starts]


def precision_on(requested: str, device: str) -> str:
    """Return "bf16", "fp16" or "fp32" for one of them or "auto". Raises CramError if the device does not support it."""
    if requested == "fp16" and device == "cpu":
        raise CramError("precision: fp16 needs a GPU; use bf16 or fp32")
    return fast_precision(device) if requested == "auto" else requested


def add_to_runs(models: Sequence[ModelSource], protocol: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows, one for each model, into the run folders among the models."""
    for model, row in zip(models, rows, strict=True):
        if not model.untrained and (Path(model.name) / "record.json").is_file():
            add_to_run(Path(model.name), protocol, row)


def add_to_run(run: Path, protocol: str, row: dict[str, Any]) -> None:
    """Write a row into the run folder, and update the report of the run."""
    from cram_composer.analysis.report.report import write_report

    path = run / RUN_FILE
    rows = read_json(path) if path.is_file() else {}
    write_json(path, {**rows, protocol: row})
    write_report([run])


class _Progress:
    """Progress bar on a terminal; elsewhere a line every 30 s and for every job that ends."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._started = self._last_line = time.monotonic()
        self._ended = 0
        self._bar: tqdm | None = None
        if sys.stderr.isatty() and total > done:
            form = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed} elapsed, {remaining} left"
            self._bar = tqdm(total=total - done, desc="eval", bar_format=form)
        elif done:
            self._print_line(f"{done} of {total} jobs are already in the results")

    def report(self, done: float) -> None:
        """Show the number of jobs done, counting running jobs by their share of steps done."""
        if self._bar is not None:
            self._bar.n = done
            self._bar.refresh()
        elif time.monotonic() - self._last_line >= _LINE_EVERY_SECONDS and done:
            elapsed = time.monotonic() - self._started
            left = elapsed / done * (self._total - self._done - done)
            self._print_line(f"{self._done + done:.1f} of {self._total} jobs, about {format_duration(left)} left")

    def ended(self, job: Job, results: Sequence[Result], error: str) -> None:
        """Print the outcome of a job."""
        self._ended += 1
        where = f"{self._done + self._ended} of {self._total}"
        if error:
            self._print_line(f"{where}: failed: {error}")
            return
        shown = "; ".join(
            f"{split} {metric} {value:.1f}"
            for result in results
            for split, scores in result.scores.items()
            for metric, value in scores.items()
        )
        first = results[0]
        self._print_line(
            f"{where}: {job.title}: {shown} ({format_duration(first.seconds)}, "
            f"{first.examples_per_second:,.0f} examples/s)"
        )

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def _print_line(self, line: str) -> None:
        self._last_line = time.monotonic()
        tqdm.write(f"eval: {line}", file=sys.stderr)
        sys.stderr.flush()
