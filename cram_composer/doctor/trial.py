"""A few steps of a run in a process of its own: python -m cram_composer.doctor.trial SETTINGS.json

Prints on its last line, as JSON, what the doctor reports of compilation, memory and speed.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.utils import counters

from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice, choose_device
from cram_composer.errors import CramError
from cram_composer.jobs.processes import end_with_parent
from cram_composer.planning.run_spec import RunSpec, read_data_facts
from cram_composer.planning.speed import measure_speed
from cram_composer.storage.files import read_json

_STEPS = 4  # of each of two sizes, besides two that warm up


def try_steps(config: RunConfig) -> dict[str, Any]:
    """Train a few steps on random rows; return seconds in `speed`, counts of graphs, and bytes of memory."""
    device = choose_device(config, 1)
    spec = RunSpec(config, read_data_facts(config.data), 1)
    compiled = Recompilations()
    speed = measure_speed(spec, device, _STEPS, compiled.expect_no_more)
    first = int(counters["stats"]["unique_graphs"])
    found: dict[str, Any] = {
        "microbatch_seconds": speed.microbatch_seconds,
        "step_seconds": speed.step_seconds,
        "compile_seconds": speed.compile_seconds,
        "graphs": first,
        "graph_breaks": sum(counters["graph_break"].values()),
        "recompilations": compiled.reasons(),
        "peak_bytes": _peak(device),
    }
    if device.name == "gpu":
        found["host_syncs"] = _host_syncs(spec, device)
    return found


class Recompilations:
    """Graphs that torch compiles although it has graphs of the same functions, because a guard of each fails."""

    def __init__(self) -> None:
        self._expected = Counter(self._all())

    def expect_no_more(self) -> None:
        """Forget those so far: layers of different kinds need a graph each."""
        self._expected = Counter(self._all())

    def reasons(self) -> list[str]:
        """Return one reason for each graph compiled since."""
        return list((Counter(self._all()) - self._expected).elements())

    @staticmethod
    def _all() -> list[str]:
        # A graph has one reason for each earlier one of its function, which torch puts before it as FRAME/GRAPH.
        failures = [reason for reasons in torch._dynamo.utils.guard_failures.values() for reason in reasons]
        split = [reason.splitlines()[0].partition(": ") for reason in failures]
        return [reason for graph, _, reason in split if graph.endswith("/0")]


def _peak(device: DeviceChoice) -> int:
    if device.name == "gpu":
        return int(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _host_syncs(spec: RunSpec, device: DeviceChoice) -> list[str]:
    """Return the operations of training that wait for the GPU, once per place in the code."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            measure_speed(spec, device, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = {f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)}
    return sorted(places)


if __name__ == "__main__":
    end_with_parent(signal.SIGKILL)
    try:
        print(json.dumps(try_steps(RunConfig.model_validate(read_json(Path(sys.argv[1]))))))
    except CramError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
