"""Groups of runs that differ only in their seeds."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import math
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cram_composer.analysis.runs.find import find_runs
from cram_composer.analysis.runs.run import RunData, load_runs
from cram_composer.config.formatting import is_number
from cram_composer.config.layers import differing_keys, flatten
from cram_composer.errors import CramError

# Sections and keys that do not affect the result of training.
IGNORED_KEYS = ("seed", "run_name", "runs_dir", "runs_remote", "logging", "export")


@dataclass
class Group:
    """Runs of one configuration with different seeds.

    Attributes:
        name: as given, or the common prefix of the runs' names.
        runs: finished runs with a final evaluation.
        notes: runs that were left out with the reason, and differing configurations.
    """

    name: str
    runs: list[RunData]
    notes: list[str] = field(default_factory=list)

    def by_seed(self, values: Iterable[float | None]) -> dict[int, float] | list[float]:
        """Return measured values by seed, averaged over runs of the same seed.

        Repeats of one seed measure machine noise, not seed variance. Returns a list if a record has no seed.
        """
        found: dict[Any, list[float]] = {}
        for run, value in zip(self.runs, values, strict=True):
            if value is not None and math.isfinite(value):
                found.setdefault(run.get("config.seed"), []).append(value)
        if None in found:
            return list(itertools.chain.from_iterable(found.values()))
        return {seed: statistics.fmean(repeats) for seed, repeats in found.items()}

    @property
    def seeds(self) -> int:
        """Number of different seeds; of runs if a record has no seed."""
        return len(self.by_seed([0.0] * len(self.runs)))

    def final_losses(self) -> list[float]:
        """Return the final held-out loss of every seed, in nats."""
        found = self.by_seed(run.get("metrics.validation_loss") for run in self.runs)
        return list(found.values()) if isinstance(found, dict) else found


def read_groups(arguments: Sequence[str]) -> list[Group]:
    """Read the groups of a command line: NAME=PATTERN, or folders whose runs are grouped by configuration.

    A pattern is a folder or contains `*`; arguments of the same name are merged. A folder is a run or contains runs.
    Unnamed groups without a finished run and unreadable runs are left out with a note; a named group without a finished
    run is an error.

    Raises:
        CramError: no run found, a run in two groups, or no readable finished run in a named group or in any group.
    """
    problems: dict[str, str] = {}  # of unreadable runs, with the name of their group
    found: dict[tuple[str, str], list[RunData]] = {}  # by name, or by settings hash for unnamed groups
    seen: dict[Path, str] = {}
    for argument in arguments:
        name, _, pattern = argument.partition("=") if not Path(argument).is_dir() else ("", "", argument)
        runs, unreadable = _load_runs(argument, pattern or name)
        problems |= dict.fromkeys(unreadable, name if pattern else "")
        for run in runs:
            place = run.path.resolve()
            if place in seen and (not name or seen[place] != name):
                raise CramError(f"{run.path}: matched twice; a run can be in one group only")
            if place in seen:
                continue
            seen[place] = name
            given = name if pattern else ""
            found.setdefault((given, "" if given else settings_hash(run)), []).append(run)
    groups = {key: make_group(key[0], runs) for key, runs in found.items()}
    _make_names_unique([group for (name, _), group in groups.items() if not name], [name for name, _ in groups if name])
    finished = [group for group in groups.values() if group.runs]
    for (name, _), group in groups.items():
        if not group.runs and (name or not finished):
            why = "; ".join(group.notes)
            raise CramError(f"{group.name}: no finished run in this group ({why}); wait for one or remove the group")
        if not group.runs:
            finished[0].notes += [f"no finished run of {group.name}: {note}" for note in group.notes]
    for problem, name in problems.items():
        group = next((group for group in finished if group.name == name), finished[0])
        group.notes.append(f"left out {problem}")
    return finished


def group_by_configuration(runs: Sequence[RunData]) -> list[Group]:
    """Group runs of equal settings in order of first appearance, dropping groups without a finished run."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(settings_hash(run), []).append(run)
    groups = [group for group in (make_group("", one) for one in found.values()) if group.runs]
    _make_names_unique(groups)
    return groups


def _load_runs(argument: str, pattern: str) -> tuple[list[RunData], list[str]]:
    """Read the runs of an argument; return them and one line for each unreadable one."""
    folders = [Path(found) for found in sorted(glob.glob(os.path.expanduser(pattern))) if Path(found).is_dir()]
    paths = [run for folder in folders for run in find_runs(folder)]
    if not paths:
        raise CramError(f"{argument}: no run found; give run folders, or NAME=PATTERN such as base='runs/base-*'")
    return load_runs(paths)


def make_group(name: str, runs: Sequence[RunData]) -> Group:
    """Make a group of the comparable runs, with notes on the others."""
    kept, notes = [], []
    for run in runs:
        if run.get("status") == "finished" and is_number(run.get("metrics.validation_loss")):
            kept.append(run)
        else:
            reason = f" ({run.get('reason')})" if run.get("reason") else ""
            notes.append(f"left out {run.name}: {run.get('status')}{reason}")
    if (differing := differing_settings(runs)) and len(runs) > 1:
        notes.append(f"configurations differ within the group: {', '.join(differing[:5])}")
    seeds = [run.get("config.seed") for run in kept]
    if len(set(seeds)) < len(seeds):
        notes.append(
            "several runs have the same seed: they measure machine noise only, and their mean counts as one run"
        )
    return Group(name or _common_name([run.name for run in runs]), kept, notes)


def _common_name(names: list[str]) -> str:
    return names[0] if len(names) == 1 else _common_prefix(names).rstrip("-_.0123456789 ")


def _common_prefix(names: list[str]) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def _make_names_unique(groups: Sequence[Group], given: Iterable[str] = ()) -> None:
    """Replace empty and repeated names by the recipes and number duplicates; names in `given` are taken."""
    taken = dict.fromkeys(given, 1)
    names = [*taken, *(group.name for group in groups)]
    for group in groups:
        if not group.name or names.count(group.name) > 1:
            recipes = (group.runs[0].get("recipes") if group.runs else None) or [group.name or "group"]
            group.name = "+".join(recipes)
        taken[group.name] = taken.get(group.name, 0) + 1
        if taken[group.name] > 1:
            group.name += f" ({taken[group.name]})"


def settings(run: RunData) -> dict[str, Any]:
    """Return the configuration by dotted key, without the seed and keys that do not affect the result.

    Keys without a value are left out, because records of earlier versions lack new ones.
    """
    config = {key: value for key, value in (run.get("config") or {}).items() if key not in IGNORED_KEYS}
    return {key: value for key, value in flatten(config).items() if value is not None}


def settings_hash(run: RunData) -> str:
    """Return a hash that is equal for runs of the same configuration."""
    return digest(settings(run))


def differing_settings(runs: Sequence[RunData]) -> list[str]:
    """Return the keys whose values differ between the runs."""
    return differing_keys(*map(settings, runs))


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
