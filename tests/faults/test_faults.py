"""Faults of the data source: the run trains on the same rows, or ends in time with a one-line error."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from cram_composer.data.manifest import file_xxh64, load_manifest, read_index
from cram_composer.runs.checkpoints import newest_checkpoint
from tests.faults.faults import FAULTS
from tests.faults.scene import ROWS, STEPS, Fault, Scene

_AFTERWARDS_SECONDS = 240.0  # a whole run on a busy machine
_IN_A_SMALL_DISK = 'mount -t tmpfs -o size=4m cache "$0" && exec "$@"'


def cases() -> list[Any]:
    found = []
    for fault in FAULTS:
        for workers in (0, 1, 2):
            marks = () if workers in fault.quick else (pytest.mark.faults,)
            found.append(pytest.param(fault, workers, id=f"{fault.name}-{workers}", marks=marks))
    return found


def rows_lost(losses: list[float], undisturbed: list[float]) -> int:
    """Count the rows of steps that are missing, or differ in rows, masks or weights from the undisturbed run."""
    same = sum(one == other for one, other in zip(losses, undisturbed, strict=False))
    assert len(losses) <= len(undisturbed)
    return (len(undisturbed) - same) * ROWS


def check_checkpoint(scene: Scene) -> int:
    """Check that the newest checkpoint is intact; return its step."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it warns of each checkpoint that it skips
        newest = newest_checkpoint(scene.run / "checkpoints")
    assert newest is not None
    return newest.step


@pytest.mark.parametrize(("fault", "workers"), cases())
def test_fault(
    fault: Fault,
    workers: int,
    make_scene: Callable[[Fault], Scene],
    undisturbed: list[float],
    record_property: Callable[[str, object], None],
) -> None:
    scene = make_scene(fault)
    command = scene.command(workers, *fault.settings)
    if fault.small_disk:
        if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urm", "true"], check=False).returncode:
            pytest.skip("needs a separate file system for the cache, but unshare -Urm does not work here")
        scene.cache.mkdir()
        command = ["unshare", "-Urm", "sh", "-c", _IN_A_SMALL_DISK, str(scene.cache), *command]
    try:
        if fault.before:
            fault.do(scene)
        began = time.monotonic()
        scene.start(command)
        if not fault.before:
            scene.wait_until_training()
            if fault.outage:
                scene.resume()
            began = time.monotonic()
            fault.do(scene)
            scene.resume()
        status = scene.end(fault.bound + (_AFTERWARDS_SECONDS if fault.recovers else 0.0))
        seconds = time.monotonic() - began
    finally:
        scene.kill()
        fault.repair(scene)

    said = scene.said()
    assert "Traceback" not in scene.output(), scene.output()
    assert not scene.left_over()
    if fault.recovers:
        assert status == 0, said
        seconds = max(step["data_seconds"] for step in scene.trace())
        assert seconds <= fault.bound
    else:
        assert status == 2, f"exit status {status}: {scene.output()}"
        assert said.startswith("error: ") and fault.line in said and "\n" not in said, said
        assert seconds <= fault.bound, seconds
        _check_what_is_left(scene, fault, undisturbed)
        scene.start(command)
        assert scene.end(_AFTERWARDS_SECONDS) == 0, scene.output()
        assert "Traceback" not in scene.output() and not scene.errors(), scene.output()
    assert check_checkpoint(scene) == STEPS
    record = json.loads((scene.run / "record.json").read_text())
    assert record["status"] == "finished" and record["steps"] == STEPS
    if not fault.recovers and not fault.before:
        assert record["attempts"][1]["started_at_step"] > 0
    lost = rows_lost(scene.losses(), undisturbed)
    record_property("fault", {"name": fault.name, "workers": workers, "said": said, "seconds": seconds, "lost": lost})
    assert lost == 0


def _check_what_is_left(scene: Scene, fault: Fault, undisturbed: list[float]) -> None:
    """Check that all steps used the right rows and that there is a checkpoint to resume from."""
    losses = scene.losses()
    assert losses == undisturbed[: len(losses)] and len(losses) < STEPS
    if fault.before:
        assert not scene.run.exists() or not list(scene.run.glob("checkpoints/*"))
        return
    assert 0 < check_checkpoint(scene) <= len(losses)
    record = json.loads((scene.run / "record.json").read_text())
    assert record["status"] == "failed" and f"error: {record['reason']}" == scene.errors().strip()
    if scene.bucket is not None and not fault.small_disk:  # shards under their final name are complete
        for shard in read_index(scene.source, "train", load_manifest(scene.source)):
            path = scene.cache / "train" / shard.raw.name
            assert not path.exists() or file_xxh64(path) == shard.raw.xxh64
