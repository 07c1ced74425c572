"""Throughput of short runs on several numbers of devices, one after another."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cram_composer.analysis.console import table_lines
from cram_composer.budget.schedules import build_schedule
from cram_composer.config import compose
from cram_composer.config.formatting import count, percent
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import CramError
from cram_composer.jobs.processes import available_cores, end_with_parent
from cram_composer.storage.files import read_json, write_json

_RANK = "cram_composer.planning.throughput_rank"
_TAIL = 8  # lines of a failed run's log
_POOR = 0.5  # efficiency below which to warn


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
    """Return the tokens per second and device relative to those of the smallest size."""
    return size.tokens_per_second / size.devices / (smallest.tokens_per_second / smallest.devices)


def scaling_warnings(sizes: list[Size]) -> list[str]:
    """Return a line for every size with fewer tokens/s than the one before, or an efficiency below one half."""
    lines = []
    for before, size in itertools.pairwise(sizes):
        gained = size.tokens_per_second / before.tokens_per_second
        share = efficiency(size, sizes[0])
        if gained < 1.0:
            lines.append(
                f"adding devices does not pay off: {size.devices} devices reach {gained:.2f} times the tokens/s of "
                f"{before.devices}"
            )
        elif share < _POOR:
            lines.append(
                f"low efficiency: {size.devices} devices reach {percent(share, 0)} of the tokens/s per device of "
                f"{sizes[0].devices} device(s)"
            )
    return lines


@dataclass(frozen=True)
class Throughput:
    """Measurements in ascending order of devices, and one line for every size that failed."""

    sizes: list[Size]
    failures: list[str]
    steps: int
    weak: bool

    @property
    def warnings(self) -> list[str]:
        """One line for every size where adding devices does not pay off."""
        return scaling_warnings(self.sizes)

    def text(self, title: str) -> str:
        """Format the table for the console."""
        if not self.sizes:
            return ""
        scaling = "weak scaling: the same batch per device" if self.weak else "strong scaling: the same total batch"
        heading = f"\n{title}, {scaling}, {self.steps} steps"
        return "\n".join([heading, *_table(self.sizes), *_notes(self.sizes)])

    def as_json(self) -> dict[str, Any]:
        """Return the values that `--json` prints."""
        return {
            "format_version": 1,
            "scaling": "weak" if self.weak else "strong",
            "steps": self.steps,
            "sizes": [
                {
                    **asdict(size),
                    "compute_seconds": size.compute_seconds,
                    "efficiency": efficiency(size, self.sizes[0]),
                }
                for size in self.sizes
            ],
            "failures": self.failures,
            "warnings": self.warnings,
        }


def measure_throughput(
    yaml: Path,
    overrides: list[str],
    numbers: list[int],
    *,
    steps: int,
    weak: bool,
    keep: Path | None,
) -> Throughput:
    """Measure each number of devices in turn, printing each result as it arrives.

    Args:
        yaml: YAML of the run, with `overrides` of its values.
        numbers: numbers of devices, ascending.
        steps: timed steps per size.
        weak: keep the batch per device instead of the total batch.
        keep: folder for run folders and logs; None for a temporary one.

    Raises:
        CramError: an invalid configuration, or an earlier measurement in `keep`.
    """
    composed = compose(RunConfig, yaml, overrides)
    build_schedule(composed.config.schedule)
    if keep is not None and any((keep / f"n{number}").exists() for number in numbers):
        raise CramError(f"--keep {keep}: holds an earlier measurement; choose another folder")
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
    return Throughput(sizes, failures, steps, weak)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Yield the folder for runs and logs: `keep`, or a temporary one."""
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
    status = launch_ranks(_RANK, number, run / "settings.json", log)
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
        raise CramError(f"this machine has {torch.cuda.device_count()} GPU(s); lower -n")


def launch_ranks(module: str, number: int, settings: Path, log: Path, timeout: float | None = None) -> int:
    """Run `module` on `number` ranks with the path `settings`; return the exit status. They end with this process.

    Raises:
        CramError: they have not ended after `timeout` seconds.
    """
    command = [sys.executable, "-m", "composer.cli.launcher", "-n", str(number)]
    for stream in ("stdout", "stderr"):  # of the other ranks
        command += [f"--{stream}", str(log.with_name(f"rank{{rank}}.{stream}"))]
    with open(log, "w") as file:
        process = subprocess.Popen(  # noqa: S603 - this interpreter, without a shell
            [*command, "-m", module, str(settings)],
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: end_with_parent(signal.SIGTERM),
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise CramError(f"{number} ranks have not ended after {timeout:g} s") from None
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
    """Return a line for every size whose ranks share one CPU."""
    cores = len(available_cores())
    return [
        f"{size.devices} ranks share {cores} cores, {size.threads} thread(s) each: they add no computing power"
        for size in sizes
        if size.device == "cpu" and size.devices > 1
    ]
