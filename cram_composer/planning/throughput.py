"""Throughput of short runs on several numbers of devices, one after another."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cram_composer.analysis.console import table_lines
from cram_composer.analysis.html.formatting import count, percent
from cram_composer.budget.schedules import build_schedule
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import CramError
from cram_composer.jobs.processes import end_with_parent
from cram_composer.storage.files import read_json, write_json

_RANK = "cram_composer.planning.throughput_rank"
_TAIL = 8  # lines of a failed run's log
_POOR = 0.5  # efficiency that is warned of


@dataclass(frozen=True)
class Size:
    """Measurements on `devices` devices; seconds are per step: medians, averaged over ranks.

    `communication_seconds` is None if it cannot be separated from computation.
    """

    devices: int
    tokens_per_second: float
    step_seconds: float
    data_seconds: float
    communication_seconds: float | None
    threads: int
    device: str

    @property
    def compute_seconds(self) -> float:
        """The rest of a step: computation and the trainer's own work."""
        return max(0.0, self.step_seconds - self.data_seconds - (self.communication_seconds or 0.0))


def efficiency(size: Size, smallest: Size) -> float:
    """Tokens per second and device, compared with the smallest size."""
    return size.tokens_per_second / size.devices / (smallest.tokens_per_second / smallest.devices)


def scaling_warnings(sizes: list[Size]) -> list[str]:
    """Sizes where adding devices does not pay off: fewer tokens/s than the size before, or an efficiency below half."""
    lines = []
    for before, size in itertools.pairwise(sizes):
        gained = size.tokens_per_second / before.tokens_per_second
        share = efficiency(size, sizes[0])
        if gained < 1.0:
            lines.append(
                f"adding devices does not pay: {size.devices} devices reach {gained:.2f} of the tokens/s of "
                f"{before.devices}"
            )
        elif share < _POOR:
            lines.append(
                f"{size.devices} devices use {percent(share, 0)} of what they would do alone (of {sizes[0].devices}'s "
                "tokens/s per device)"
            )
    return lines


def measure_throughput(
    yaml: Path,
    overrides: list[str],
    numbers: list[int],
    *,
    steps: int,
    weak: bool,
    keep: Path | None = None,
    json: Path | None = None,
) -> int:
    """Measure each number of devices in turn and print the table.

    Args:
        yaml: YAML of the run, with `overrides` of its values.
        numbers: numbers of devices, ascending.
        steps: timed steps per size.
        weak: keep the batch per device instead of the total batch.
        keep: folder for run folders and logs; None for a temporary one.
        json: file that the results are also written to.

    Returns:
        The exit status: 1 if a size failed, else 0.

    Raises:
        CramError: an invalid configuration, or an earlier measurement in `keep`.
    """
    composed = compose(RunConfig, yaml, overrides)
    build_schedule(composed.config.schedule)
    if keep is not None and any((keep / f"n{number}").exists() for number in numbers):
        raise CramError(f"--keep {keep}: contains an earlier measurement; choose another folder")
    settings = {"yaml": str(yaml), "overrides": overrides, "steps": steps, "weak": weak, "smallest": numbers[0]}
    sizes: list[Size] = []
    failures: list[str] = []
    with _folder(keep) as folder:
        for number in numbers:
            try:
                sizes.append(_measure(composed.config, number, settings, folder))
            except CramError as error:
                failures.append(str(error))
                print(f"error: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{number} device(s): {count(sizes[-1].tokens_per_second)} tokens/s", flush=True)
    warned = scaling_warnings(sizes)
    if sizes:
        scaling = "weak scaling: the same batch per device" if weak else "strong scaling: the same total batch"
        print(f"\n{yaml}, {scaling}, {steps} steps", *_table(sizes), sep="\n")
    for line in _notes(sizes):
        print(line)
    for line in warned:
        print(f"warning: {line}", file=sys.stderr)
    if json is not None:
        write_json(json, _as_json(sizes, weak, steps, failures, warned))
    return 1 if failures else 0


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Folder for runs and logs: `keep`, or a temporary one."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="cram-throughput-") as folder:
        yield Path(folder)


def _measure(config: RunConfig, number: int, settings: dict[str, Any], folder: Path) -> Size:
    """Run on `number` devices. Raises CramError with the end of the log on failure."""
    from cram_composer.device import choose_device
    from cram_composer.planning.throughput_rank import MEASURED, steady_config

    try:
        steady_config(config, number, settings["smallest"], settings["weak"], settings["steps"])
        if choose_device(config, number).name == "gpu":
            _check_gpus(number)
    except CramError as error:
        raise CramError(f"{number} device(s): {error}") from None
    run = folder / f"n{number}"
    run.mkdir()
    write_json(run / "settings.json", {**settings, "folder": str(run)})
    log = run / "log.txt"
    status = _launch(number, run / "settings.json", log)
    if status or not (run / MEASURED).is_file():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        tail = "".join(f"\n  {line}" for line in lines[-_TAIL:])
        raise CramError(f"{number} device(s): the run ended with exit status {status}{tail}")
    found = read_json(run / MEASURED)
    tokens = found.pop("tokens_per_step")
    return Size(number, tokens / found["step_seconds"], **found)


def _check_gpus(number: int) -> None:
    import torch

    if number > torch.cuda.device_count():
        raise CramError(f"there are {torch.cuda.device_count()} GPU(s) here")


def _launch(number: int, settings: Path, log: Path) -> int:
    """Run Composer's launcher with `number` ranks and return its exit status. It ends when this process does."""
    command = [sys.executable, "-m", "composer.cli.launcher", "-n", str(number)]
    for stream in ("stdout", "stderr"):  # of the other ranks
        command += [f"--{stream}", str(log.with_name(f"rank{{rank}}.{stream}"))]
    with open(log, "w") as file:
        process = subprocess.Popen(
            [*command, "-m", _RANK, str(settings)],
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def _table(sizes: list[Size]) -> list[str]:
    rows = [["devices", "tokens/s", "speed-up", "efficiency", "step", "compute", "communication", "data"]]
    for size in sizes:
        shares = (size.compute_seconds, size.communication_seconds, size.data_seconds)
        rows.append(
            [
                str(size.devices),
                count(size.tokens_per_second),
                f"{size.tokens_per_second / sizes[0].tokens_per_second:.2f}",
                percent(efficiency(size, sizes[0]), 0),
                f"{size.step_seconds:.3f} s",
                *(percent(None if seconds is None else seconds / size.step_seconds) for seconds in shares),
            ]
        )
    return table_lines(rows, right=range(len(rows[0])))


def _notes(sizes: list[Size]) -> list[str]:
    """Say that ranks on a CPU have no devices of their own."""
    cores = len(os.sched_getaffinity(0))
    return [
        f"{size.devices} ranks share {cores} cores, {size.threads} thread(s) each: they add no computing power"
        for size in sizes
        if size.device == "cpu" and size.devices > 1
    ]


def _as_json(sizes: list[Size], weak: bool, steps: int, failures: list[str], warned: list[str]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "scaling": "weak" if weak else "strong",
        "steps": steps,
        "sizes": [
            {
                **asdict(size),
                "compute_seconds": size.compute_seconds,
                "efficiency": efficiency(size, sizes[0]),
            }
            for size in sizes
        ],
        "failures": failures,
        "warnings": warned,
    }
