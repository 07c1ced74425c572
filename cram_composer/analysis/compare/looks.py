"""Looks at the results of a sweep: verdicts may come early, and false ones stay at 5 % over all looks.

A look gets the significance level that an error-spending function allows by then, less what earlier looks were allowed:
Lan and DeMets 1983 (Biometrika 70), in the shape of O'Brien and Fleming's bounds. Adding levels up is conservative,
since looks share their seeds.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cram_composer.analysis.compare.groups import Group, settings_hash
from cram_composer.analysis.compare.statistics import LEVEL
from cram_composer.storage.files import read_json, write_json

LOOKS = "looks.json"  # in a sweep's folder: the planned seeds, and by hash of a variant the numbers of seeds looked at


def spent(share: float) -> float:
    """Return the chance of a false verdict that looks up to this share of the planned seeds may use together."""
    from scipy import stats

    return (
        2.0 * float(stats.norm.sf(stats.norm.isf((1.0 - LEVEL) / 2.0) / math.sqrt(min(share, 1.0)))) if share else 0.0
    )


def level_of(seeds: int, earlier: Sequence[int], planned: int) -> float:
    """Return the significance level of a look at `seeds` of the `planned` seeds, after looks at `earlier` numbers.

    It is 0 if seeds were added beyond the planned ones after a look.
    """
    before = max((number for number in earlier if number < seeds), default=0)
    if seeds > planned:
        return 0.0 if before else 1.0 - LEVEL
    return spent(seeds / planned) - spent(before / planned)


def plan_looks(folder: Path, planned: int) -> None:
    """Note the planned seeds of a sweep in its folder; after a look they stay as they were."""
    found = _read(folder)
    if found is None or not found["looks"]:
        write_json(folder / LOOKS, {"planned": planned, "looks": {}})


def look(groups: Sequence[Group], baseline: Group) -> dict[str, float]:
    """Return the level of every challenger's verdict, and note the look in the sweep's folder.

    Runs that are not all of one sweep get no entry: nobody knows what was looked at before.
    """
    folders = {run.path.resolve().parent for group in groups for run in group.runs}
    found = _read(folders.pop()) if len(folders) == 1 else None
    if found is None:
        return {}
    levels = {}
    for group in groups:
        seeds = min(len({run.get("config.seed") for run in one.runs}) for one in (group, baseline))
        if group is baseline or max(len(group.runs), len(baseline.runs)) < 2:
            continue
        earlier = found["looks"].setdefault(settings_hash(group.runs[0]), [])  # whatever the group is called
        levels[group.name] = level_of(seeds, earlier, found["planned"])
        if seeds not in earlier:
            earlier.append(seeds)
    with contextlib.suppress(OSError):  # somebody else's folder
        write_json(found.pop("path"), found)
    return levels


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / LOOKS
    return {**read_json(path), "path": path} if path.is_file() else None
