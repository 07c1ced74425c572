"""`cram scaling-check`: a short run on each of several numbers of devices, one after another."""

from __future__ import annotations

import argparse
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

from cram_composer.analysis.html.formatting import count, percent
from cram_composer.budget.schedules import build_schedule
from cram_composer.commands.columns import aligned
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
    """What was measured on `devices` devices; seconds are those of a step, medians, averaged over ranks.

    `communication_seconds` is None where it cannot be told from computation.
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
        """The rest: computation, and the trainer's own work."""
        return max(0.0, self.step_seconds - self.data_seconds - (self.communication_seconds or 0.0))


def efficiency(size: Size, smallest: Size) -> float:
    """Tokens per second and device, compared with the smallest size."""
    return size.tokens_per_second / size.devices / (smallest.tokens_per_second / smallest.devices)


def warnings_of(sizes: list[Size]) -> list[str]:
    """Where adding devices does not pay: fewer tokens/s than one size before, or less than half the efficiency."""
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


def scaling_check(options: argparse.Namespace) -> int:
    """Measure every size and print the table; the exit status is 1 if one of them failed. Raises CramError."""
    numbers = _numbers(options.sizes)
    if options.steps < 4:
        raise CramError(f"--steps {options.steps}: at least 4, to tell a steady step from a slow one")
    composed = compose(RunConfig, options.yaml, options.overrides)
    build_schedule(composed.config.schedule)
    if options.keep is not None and any((options.keep / f"n{number}").exists() for number in numbers):
        raise CramError(f"--keep {options.keep}: there is an earlier check; choose another folder")
    sizes: list[Size] = []
    failures: list[str] = []
    with _folder(options.keep) as folder:
        for number in numbers:
            try:
                sizes.append(_measure(options, composed.config, number, numbers[0], folder))
            except CramError as error:
                failures.append(str(error))
                print(f"error: {error}", file=sys.stderr, flush=True)
            else:
                print(f"{number} device(s): {count(sizes[-1].tokens_per_second)} tokens/s", flush=True)
    warned = warnings_of(sizes)
    if sizes:
        scaling = "weak scaling: the same batch per device" if options.weak else "strong scaling: the same batch in all"
        print(f"\n{options.yaml}, {scaling}, {options.steps} steps", *_table(sizes), sep="\n")
    for line in _notes(sizes):
        print(line)
    for line in warned:
        print(f"warning: {line}", file=sys.stderr)
    if options.json is not None:
        write_json(options.json, _as_json(options, sizes, failures, warned))
    return 1 if failures else 0


def _numbers(text: str) -> list[int]:
    try:
        numbers = sorted({int(item) for item in text.split(",")})
    except ValueError:
        raise CramError(f"-n {text}: numbers of devices with commas between, such as 1,2,4") from None
    if numbers[0] < 1:
        raise CramError(f"-n {text}: at least 1 device")
    return numbers


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Where runs and logs go: `keep`, or a folder that is removed afterwards."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="cram-scaling-") as folder:
        yield Path(folder)


def _measure(options: argparse.Namespace, config: RunConfig, number: int, smallest: int, folder: Path) -> Size:
    """Run on `number` devices. Raises CramError with the end of the log if that fails."""
    from cram_composer.device import choose_device
    from cram_composer.planning.throughput_rank import MEASURED, steady

    try:
        steady(config, number, smallest, options.weak, options.steps)
        if choose_device(config, number).name == "gpu":
            _check_gpus(number)
    except CramError as error:
        raise CramError(f"{number} device(s): {error}") from None
    run = folder / f"n{number}"
    run.mkdir()
    settings = {
        "yaml": str(options.yaml),
        "overrides": options.overrides,
        "steps": options.steps,
        "weak": options.weak,
        "smallest": smallest,
        "folder": str(run),
    }
    write_json(run / "settings.json", settings)
    log = run / "log.txt"
    status = _launch(number, run / "settings.json", log)
    if status or not (run / MEASURED).is_file():
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        tail = "".join(f"\n  {line}" for line in lines[-_TAIL:])
        raise CramError(f"{number} device(s): the run ended with exit status {status}{tail}")
    found = read_json(run / MEASURED)
    return Size(number, found["tokens_per_step"] / found["step_seconds"], **_without(found, "tokens_per_step"))


def _without(values: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def _check_gpus(number: int) -> None:
    import torch

    if number > torch.cuda.device_count():
        raise CramError(f"there are {torch.cuda.device_count()} GPU(s) here")


def _launch(number: int, settings: Path, log: Path) -> int:
    """Composer's launcher with `number` ranks; returns its exit status. It ends when this process does."""
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
    return aligned(rows, right=range(len(rows[0])))


def _notes(sizes: list[Size]) -> list[str]:
    """On a CPU, ranks have no devices of their own."""
    cores = len(os.sched_getaffinity(0))
    return [
        f"{size.devices} ranks share {cores} cores, {size.threads} thread(s) each: they add no computing power"
        for size in sizes
        if size.device == "cpu" and size.devices > 1
    ]


def _as_json(options: argparse.Namespace, sizes: list[Size], failures: list[str], warned: list[str]) -> dict[str, Any]:
    return {
        "format_version": 1,
        "scaling": "weak" if options.weak else "strong",
        "steps": options.steps,
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
