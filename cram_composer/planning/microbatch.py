"""The largest microbatch that fits into memory: python -m cram_composer.planning.microbatch SETTINGS.json

Every candidate takes its steps in a process of its own, which may run out of memory or be killed for it without harm.
The result, on the last line of the output, is JSON.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice, choose_device, out_of_memory
from cram_composer.errors import CramError
from cram_composer.jobs.processes import last_error, run_module
from cram_composer.planning.memory import StepMemory, measure_step_memory
from cram_composer.planning.run_spec import RunSpec, read_data_facts
from cram_composer.planning.speed import measure_speed
from cram_composer.planning.strategies import estimate_memory, strategy_name
from cram_composer.storage.files import read_json

USABLE = 0.92  # share of the memory that a microbatch may use
# Tokens in a microbatch beyond which a step gets no faster: its products are as large as the device needs.
_ENOUGH_TOKENS = {"cpu": 1 << 13, "gpu": 1 << 18}
_TOO_LARGE = 3  # exit status of a process that ran out of memory
FEW_ROWS = 8  # of the microbatch whose memory is measured; with fewer, the peak is elsewhere in the step


@dataclass(frozen=True)
class LargestMicrobatch:
    """The largest microbatch that fits; `memory_share` is its peak as a share of the memory, measured or estimated."""

    rows: int
    memory_share: float
    measured: bool


def with_microbatch(config: RunConfig, rows: int) -> RunConfig:
    """Return the configuration with microbatches of `rows` rows."""
    train = config.train.model_copy(update={"device_train_microbatch_size": rows})
    return config.model_copy(update={"train": train})


def candidates(config: RunConfig, devices: int, row_length: int, device: str, below: int | None = None) -> list[int]:
    """Return the powers of two that divide a device's batch, ascending, up to what `device` ("cpu", "gpu") can use."""
    rows = config.train.batch_size // devices
    sizes = [1 << power for power in range(rows.bit_length()) if rows % (1 << power) == 0]
    enough = max(1, _ENOUGH_TOKENS[device] // row_length)
    return [size for size in sizes if size <= enough and (below is None or size < below)] or sizes[:1]


def estimated_shares(
    config: RunConfig, step: StepMemory, devices: int, sizes: list[int], memory: float
) -> dict[int, float]:
    """Return the estimated share of `memory` bytes for microbatches of each of `sizes` rows."""
    strategy = strategy_name(config)
    return {rows: estimate_memory(strategy, step, devices, rows, sizes, None).total / memory for rows in sizes}


def find_largest(config: RunConfig, devices: int, below: int | None = None) -> LargestMicrobatch:
    """Find the largest microbatch for one of `devices` devices, of fewer than `below` rows if given.

    Strategies that shard weights or state are estimated, because one process cannot hold what a device holds then.

    Raises:
        CramError: not even one row fits.
    """
    device = choose_device(config, devices)
    spec = RunSpec(with_microbatch(config, FEW_ROWS), read_data_facts(config.data), devices)
    sizes = candidates(config, devices, spec.facts.sequence_length, device.name, below)
    memory = _memory(device)
    shares = estimated_shares(config, measure_step_memory(spec, device.precision), devices, sizes, memory)
    likely = max((rows for rows in sizes if shares[rows] <= USABLE), default=sizes[0])
    if config.scaleout.strategy in ("fsdp2", "deepspeed"):
        if shares[likely] > USABLE:
            raise _nothing_fits(memory)
        return LargestMicrobatch(likely, shares[likely], measured=False)
    return _search(config, devices, sizes, sizes.index(likely), memory)


def _search(config: RunConfig, devices: int, sizes: list[int], start: int, memory: float) -> LargestMicrobatch:
    """Try `sizes`, ascending, upwards from the index `start` while they fit, or else downwards."""
    best: LargestMicrobatch | None = None
    index = start
    while 0 <= index < len(sizes):
        share = _try(config, devices, sizes[index])
        if share is not None and share <= USABLE:
            best = LargestMicrobatch(sizes[index], share, measured=True)
            if index < start:
                break
            index += 1
        elif best is not None:
            break
        else:
            start = index
            index -= 1
    if best is None:
        raise _nothing_fits(memory)
    return best


def _nothing_fits(memory: float) -> CramError:
    return CramError(
        f"train.device_train_microbatch_size=auto: not one row fits into {memory / 1e9:,.1f} GB; lower the sizes in "
        "model"
    )


def _try(config: RunConfig, devices: int, rows: int) -> float | None:
    """Train a few steps with microbatches of `rows` rows; return the share of the memory used, None if too little."""
    settings = {"config": with_microbatch(config, rows).model_dump(mode="json"), "devices": devices}
    done = run_module(__spec__.name if __spec__ else __name__, settings, os.environ, "--try")
    if done.returncode in (_TOO_LARGE, -signal.SIGKILL):
        return None
    if done.returncode:
        raise CramError(f"train.device_train_microbatch_size=auto: {rows} rows: {last_error(done)}")
    return float(done.stdout.splitlines()[-1])


def _train_briefly(settings: dict[str, Any]) -> float:
    """Train a few steps through the trainer and return the peak share of the device's memory."""
    config, devices = RunConfig.model_validate(settings["config"]), settings["devices"]
    device = choose_device(config, devices)
    spec = RunSpec(config, read_data_facts(config.data), devices)
    memory = _memory(device)
    before = 0.0
    if device.name == "gpu":
        free, memory = torch.cuda.mem_get_info()
        before = memory - free
    measure_speed(spec, device, steps=1)
    if device.name == "gpu":
        peak = before + torch.cuda.max_memory_reserved()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    buckets = 0.0
    if devices > 1:  # of DistributedDataParallel: a second copy of the gradients
        buckets = float(measure_step_memory(spec, device.precision).gradients)
    return (peak + buckets) / memory


def _memory(device: DeviceChoice) -> float:
    """Return the bytes of the device, or on a CPU those that this process may use."""
    if device.name == "gpu":
        return float(torch.cuda.get_device_properties(0).total_memory)
    process = psutil.Process()
    available = psutil.virtual_memory().available + process.memory_info().rss
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return float(min([available, *(limit for limit in limits if limit != resource.RLIM_INFINITY)]))


def main(arguments: list[str]) -> int:
    """Search, or with `--try` take the steps of one candidate; print the result as the last line."""
    try:
        if arguments[0] == "--try":
            print(_train_briefly(read_json(Path(arguments[1]))))
            return 0
        settings = read_json(Path(arguments[0]))
        found = find_largest(RunConfig.model_validate(settings["config"]), settings["devices"], settings.get("below"))
        print(json.dumps({"rows": found.rows, "memory_share": found.memory_share, "measured": found.measured}))
        return 0
    except CramError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if out_of_memory(error) is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return _TOO_LARGE


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # a process without memory may not get through Python's own exit
