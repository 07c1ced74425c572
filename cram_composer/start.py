"""Whether a run starts, continues, or is over already; decided before anything heavy is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cram_composer.config import Composed
from cram_composer.errors import CramError
from cram_composer.record import RunFolder


def start(composed: Composed, path: Path) -> int:
    """Train in the run folder `path`; returns the process's exit status."""
    first = os.environ.get("RANK", "0") == "0"
    folder = RunFolder(path)
    if first:
        folder.lock()
    try:
        earlier = folder.read_record()
        if earlier is not None:
            _check_same(earlier, composed, path)
            if earlier["status"] in ("finished", "killed-early"):
                if first:
                    print(f"{path}: this run is over ({earlier['status']}); choose run_name=... for another")
                return 0
        from cram_composer.training import run

        return run(composed, folder, earlier)
    finally:
        folder.unlock()


def _check_same(earlier: dict[str, Any], composed: Composed, path: Path) -> None:
    """A run continues with the configuration it began with."""
    if earlier["config_hash"] == composed.hash:
        return
    before, now = _flat(earlier["config"]), _flat(composed.plain)
    differing = [key for key in now if before.get(key) != now[key]] or ["the schema"]
    raise CramError(
        f"{path}: holds a run with another configuration ({', '.join(differing[:5])}); "
        "choose run_name=... for a new run, or go back to that configuration to continue"
    )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}
