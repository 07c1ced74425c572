"""`train.device_train_microbatch_size: auto`, decided before the clock starts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import torch
from composer.utils import dist
from composer.utils.collect_env import get_cpu_model

from cram_composer.config.schema.run import RunConfig
from cram_composer.device import DeviceChoice
from cram_composer.errors import CramError
from cram_composer.jobs.processes import last_error, run_module

_SEARCH = "cram_composer.planning.microbatch"
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


def choose_microbatch(
    config: RunConfig, device: DeviceChoice, previous: dict[str, Any] | None, wait: Callable[[], None]
) -> tuple[RunConfig, dict[str, Any] | None]:
    """Replace `auto` by the largest microbatch that fits into a device's memory. Collective.

    An earlier attempt's choice is kept on the same device, unless it ran out of memory: then a smaller one is found.

    Args:
        config: the configuration; its data set is available.
        device: the device of this process.
        previous: the record of earlier attempts, None for a new run.
        wait: a barrier with a long timeout.

    Returns:
        The configuration with a number of rows, and the choice for the record: "rows", "memory_share", "measured" and
        "device"; None if the configuration gives a number.

    Raises:
        CramError: not one row fits, or the search failed.
    """
    if config.train.device_train_microbatch_size != "auto":
        return config, None
    results: list[Any] = [None]
    if dist.get_global_rank() == 0:
        try:
            results = [_choose(config, device, (previous or {}).get("microbatch"))]
        except CramError as error:
            results = [str(error)]
    wait()
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(results)
    (choice,) = results
    if isinstance(choice, str):
        raise CramError(choice)
    train = config.train.model_copy(update={"device_train_microbatch_size": choice["rows"]})
    return config.model_copy(update={"train": train}), choice


def _choose(config: RunConfig, device: DeviceChoice, earlier: dict[str, Any] | None) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.name == "gpu" else get_cpu_model()
    below = None
    if earlier is not None and earlier["device"] == name:
        below = earlier.get("too_large")
        if below is None:
            return earlier
    choice = {**_search(config, below), "device": name}
    how = "of its memory used" if choice["measured"] else "of its memory used by estimate"
    rows = f"microbatches of {choice['rows']} rows"
    print(f"train.device_train_microbatch_size=auto: {rows}, {choice['memory_share']:.0%} {how} ({name})", flush=True)
    return choice


def _search(config: RunConfig, below: int | None) -> dict[str, Any]:
    """Search in another process, which leaves no memory in use on the device of this one."""
    settings = {"config": config.model_dump(mode="json"), "devices": dist.get_world_size(), "below": below}
    alone = {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}
    done = run_module(_SEARCH, settings, alone)
    if done.returncode:
        raise CramError(last_error(done))
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def smaller_microbatch(config: RunConfig, choice: dict[str, Any] | None) -> str:
    """Advise how to resume a run that ran out of memory, and note in `choice` that its microbatch was too large."""
    rows = config.train.microbatch
    if rows == 1:
        return "lower eval.batch_size or the sizes in model"
    if choice is not None:
        choice["too_large"] = rows
        return f"run the same command to resume with microbatches of fewer than {rows} rows"
    smaller = max(size for size in range(1, rows) if rows % size == 0)
    return f"resume with train.device_train_microbatch_size={smaller} (was {rows}), or auto"
