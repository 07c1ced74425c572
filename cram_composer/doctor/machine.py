"""The machine: device, compiler, shared memory, disk, and other processes."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from composer.utils.collect_env import get_cpu_model

from cram_composer.config.paths import expand
from cram_composer.data.loading.preflight import format_bytes
from cram_composer.device import missing_compiler
from cram_composer.doctor.checks import Check, CheckContext
from cram_composer.jobs.processes import available_cores
from cram_composer.train.cpu_share import CpuMeter

_SHARED_MEMORY = 256 << 20  # bytes: reader processes pass batches in it
_DISK_BYTES = 128 << 20
_SLOW_DISK = 50e6  # bytes/s, at which a checkpoint of 1.5 GB takes half a minute
_LOAD_SECONDS = 2.0
_BUSY = 0.05  # share of the CPUs


def check_machine(context: CheckContext) -> Iterator[Check]:
    """Check what a run needs of the machine."""
    yield _device(context)
    yield _compiler(context)
    yield _shared_memory()
    yield _disk(context)
    yield _load()


def _device(context: CheckContext) -> Check:
    device = context.device
    if device.name == "cpu":
        cores = len(available_cores())
        memory = psutil.virtual_memory()
        size = f"{cores} cores, {format_bytes(memory.total)}"
        line = f"{get_cpu_model()}, {size}, {device.threads} threads, {device.precision}, torch {torch.__version__}"
        values = {"kind": "cpu", "name": get_cpu_model(), "cores": cores, "memory": memory.total}
        return Check("device", "pass", line, {**values, "precision": device.precision, "torch": torch.__version__})
    properties = torch.cuda.get_device_properties(0)
    free, total = torch.cuda.mem_get_info()
    name = f"{properties.name} (sm_{properties.major}{properties.minor})"
    line = f"{name}, {format_bytes(free)} of {format_bytes(total)} free, {device.precision}, torch {torch.__version__}"
    values = {
        "kind": "gpu", "name": properties.name, "capability": [properties.major, properties.minor], "memory": total,
        "free": free, "precision": device.precision, "torch": torch.__version__, "cuda": torch.version.cuda,
    }  # fmt: skip
    if free < 0.9 * total:
        return Check("device", "warn", f"{line}; another process uses this GPU", values)
    return Check("device", "pass", line, values)


def _compiler(context: CheckContext) -> Check:
    """Look for what torch.compile needs."""
    missing = missing_compiler(context.device.name)
    if missing is None:
        return Check("compiler", "pass", "torch.compile has a compiler")
    if context.composed.config.train.compile in ("auto", "off"):
        return Check("compiler", "warn", f"{missing}; without it a run is not compiled, and slower")
    return Check("compiler", "fail", missing)


def _shared_memory() -> Check:
    folder = Path("/dev/shm")  # noqa: S108 - only its size is read
    if not folder.is_dir():
        return Check("shared memory", "skip", "this system has no /dev/shm")
    free = shutil.disk_usage(folder).free
    if free < _SHARED_MEMORY:
        line = f"{format_bytes(free)} free in /dev/shm; give the container more (docker: --shm-size=1g)"
        return Check("shared memory", "fail", line, {"free": free})
    return Check("shared memory", "pass", f"{format_bytes(free)} free in /dev/shm", {"free": free})


def _disk(context: CheckContext) -> Check:
    folder = expand(context.config.runs_dir)
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    block = os.urandom(1 << 20)
    with tempfile.NamedTemporaryFile(dir=existing, prefix=".cram-doctor-") as file:
        started = time.perf_counter()
        for _ in range(_DISK_BYTES >> 20):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        speed = _DISK_BYTES / (time.perf_counter() - started)
    line = f"writes {format_bytes(int(speed))}/s in {existing}, {format_bytes(free)} free"
    if speed < _SLOW_DISK:
        return Check("disk", "warn", f"{line}; checkpoints will take long", {"bytes_per_second": speed, "free": free})
    return Check("disk", "pass", line, {"bytes_per_second": speed, "free": free})


def _load() -> Check:
    meter = CpuMeter()
    time.sleep(_LOAD_SECONDS)
    busy, seconds = meter.others()
    share = busy / max(1e-9, seconds * len(meter.cpus))
    line = f"other processes use {share:.0%} of the CPUs"
    if share > _BUSY:
        return Check("load", "warn", f"{line}; figures below are of a machine that is not idle", {"share": share})
    return Check("load", "pass", line, {"share": share})
