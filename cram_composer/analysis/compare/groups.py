"""Groups of runs that differ by their seeds alone, and what makes two groups' losses incomparable."""

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

from cram_composer.analysis.html.formatting import is_number
from cram_composer.analysis.runs.find import find_runs
from cram_composer.analysis.runs.run import RunData, load_run
from cram_composer.analysis.runs.table import budget_text
from cram_composer.config.layers import flatten
from cram_composer.errors import CramError

# Sections and keys that do not change what is learned.
NOT_SETTINGS = ("seed", "run_name", "runs_dir", "runs_remote", "logging", "export")


@dataclass
class Group:
    """Runs of one configuration with different seeds.

    Attributes:
        name: as given, or what the runs' names have in common.
        runs: those that finished and have a final evaluation.
        notes: what a reader must know: runs that were left out and why, configurations that are not the same.
    """

    name: str
    runs: list[RunData]
    notes: list[str] = field(default_factory=list)

    def by_seed(self, values: Iterable[float | None]) -> dict[int, float] | list[float]:
        """A value of every run, those that are measured, by seed: the mean where several runs have one seed.

        Repeats differ by chance of the machine alone and are no evidence of how seeds differ. A list where a record
        names no seed.
        """
        found: dict[Any, list[float]] = {}
        for run, value in zip(self.runs, values, strict=True):
            if value is not None and math.isfinite(value):
                found.setdefault(run.get("config.seed"), []).append(value)
        if None in found:
            return list(itertools.chain.from_iterable(found.values()))
        return {seed: statistics.fmean(repeats) for seed, repeats in found.items()}


def read_groups(arguments: Sequence[str]) -> list[Group]:
    """The groups of a command line: NAME=PATTERN, or folders, whose runs are grouped by their configuration.

    A pattern is a folder or has `*`; the same name twice adds up. A folder may be a run or hold runs. A configuration
    of which nothing finished is left out with a note, a group that was named is not.

    Raises:
        CramError: nothing there, a run in two groups, or a named group, or all of them, without a finished run.
    """
    found: dict[tuple[str, str], list[RunData]] = {}  # by name, or by the settings of those that have none
    seen: dict[Path, str] = {}
    for argument in arguments:
        name, _, pattern = argument.partition("=") if not Path(argument).is_dir() else ("", "", argument)
        for run in _read(argument, pattern or name):
            place = run.path.resolve()
            if place in seen and (not name or seen[place] != name):
                raise CramError(f"{run.path}: named twice; a run can be in one group only")
            if place in seen:
                continue
            seen[place] = name
            given = name if pattern else ""
            found.setdefault((given, "" if given else settings_hash(run)), []).append(run)
    groups = {key: make_group(key[0], runs) for key, runs in found.items()}
    _tell_apart([group for (name, _), group in groups.items() if not name], [name for name, _ in groups if name])
    finished = [group for group in groups.values() if group.runs]
    for (name, _), group in groups.items():
        if not group.runs and (name or not finished):
            why = "; ".join(group.notes)
            raise CramError(f"{group.name}: no finished run in this group ({why}); wait or leave it out")
        if not group.runs:
            finished[0].notes += [f"of {group.name} nothing finished: {note}" for note in group.notes]
    return finished


def group_by_configuration(runs: Sequence[RunData]) -> list[Group]:
    """Groups of runs whose settings are equal, in the order of the first of each; those without a finished run go."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(settings_hash(run), []).append(run)
    groups = [group for group in (make_group("", one) for one in found.values()) if group.runs]
    _tell_apart(groups)
    return groups


def _read(argument: str, pattern: str) -> list[RunData]:
    folders = [Path(found) for found in sorted(glob.glob(os.path.expanduser(pattern))) if Path(found).is_dir()]
    runs = [run for folder in folders for run in find_runs(folder)]
    if not runs:
        raise CramError(f"{argument}: no run there; give run folders, or NAME=PATTERN such as base='runs/base-*'")
    return [load_run(path) for path in runs]


def make_group(name: str, runs: Sequence[RunData]) -> Group:
    """A group of the runs that can be compared, with notes on the others."""
    kept, notes = [], []
    for run in runs:
        if run.get("status") == "finished" and is_number(run.get("metrics.validation_loss")):
            kept.append(run)
        else:
            reason = f" ({run.get('reason')})" if run.get("reason") else ""
            notes.append(f"left out {run.name}: {run.get('status')}{reason}")
    if (differing := differing_settings(runs)) and len(runs) > 1:
        notes.append(f"not one configuration: {', '.join(differing[:5])} differ")
    seeds = [run.get("config.seed") for run in kept]
    if len(set(seeds)) < len(seeds):
        notes.append(
            "several runs have the same seed: they differ by chance of the machine alone, if at all, and count as one"
        )
    return Group(name or _common_name([run.name for run in runs]), kept, notes)


def _common_name(names: list[str]) -> str:
    return names[0] if len(names) == 1 else _common_start(names).rstrip("-_.0123456789 ")


def _common_start(names: list[str]) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def _tell_apart(groups: Sequence[Group], given: Iterable[str] = ()) -> None:
    """Names that are empty or not unique become the recipes, then get a number; none is one of those `given`."""
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
    """The configuration by dotted key, without what does not change what is learned, and without the seed."""
    config = {key: value for key, value in (run.get("config") or {}).items() if key not in NOT_SETTINGS}
    return flatten(config)


def settings_hash(run: RunData) -> str:
    """Equal for runs of one configuration."""
    return _digest(settings(run))


def differing_settings(runs: Sequence[RunData]) -> list[str]:
    """Keys in which the settings of the runs differ."""
    flat = [settings(run) for run in runs]
    keys = dict.fromkeys(key for one in flat for key in one)
    absent = object()
    return [key for key in keys if any(one.get(key, absent) != flat[0].get(key, absent) for one in flat)]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def data_hash(run: RunData) -> str:
    """Of the manifest as the record keeps it, without the versions of what wrote it."""
    return _digest({key: value for key, value in (run.get("data") or {}).items() if key != "created_with"})


@dataclass(frozen=True)
class Comparability:
    """How two groups can be compared.

    Attributes:
        budget: at equal what their final losses are: "wall-clock", "device-hours", "tokens" or "steps"; None if the
            budgets differ.
        refusals: why losses are not comparable, one line each; the first word says what differs.
        in_loop: why held-out losses in the loop are not, though the final ones are; empty where they are.
        cautions: what else may make a difference.
        per_character: the same text in other tokens, so that bits per character are comparable where losses are not.
    """

    budget: str | None
    refusals: list[str]
    in_loop: str
    cautions: list[str]
    per_character: bool


def comparability(a: Group, b: Group) -> Comparability:
    """What of the rules, the data and the machine differs between two groups, and within them."""
    runs = [*a.runs, *b.runs]
    refusals = data_refusals(runs)
    per_character = len(refusals) == 1 and refusals[0].startswith("tokenizer")
    cautions = _cautions(runs)
    if per_character and not all(map(_whole_split, runs)):
        cautions.append("the final evaluations are of a part of the held-out text, which other tokens end elsewhere")
    budget = _equal_budget(runs)
    if budget is None:
        refusals.insert(0, f"budget: {_listed(budget_text(run) + _on(run) for run in runs)}")
    rows = {str(run.get("config.eval.rows")): None for run in runs}
    in_loop = f"not comparable: evaluation: rows in the loop {_listed(rows)}" if len(rows) > 1 else ""
    return Comparability(budget, refusals, in_loop, cautions, per_character and budget is not None)


def _whole_split(run: RunData) -> bool:
    """Whether the final evaluation was of all held-out rows, up to a batch that they do not fill."""
    rows, asked = run.get("metrics.validation_rows"), run.get("config.eval.final_rows")
    return is_number(rows) and is_number(asked) and rows + (run.get("config.eval.batch_size") or 0) <= asked


def data_refusals(runs: Sequence[RunData]) -> list[str]:
    """Why final held-out losses of the runs are not comparable, whatever their budgets, a line each."""
    refusals = []
    tokenizers = list(dict.fromkeys(run.get("data.tokenizer_sha256") for run in runs))
    if len(tokenizers) > 1:
        refusals.append(f"tokenizer: {_listed(str(token)[:12] for token in tokenizers)}")
        if len({_text(run) for run in runs}) > 1:
            refusals.append("data: not the same text")
    elif len({data_hash(run) for run in runs}) > 1:
        names = _listed(f"{run.get('data.name')} ({data_hash(run)[:8]})" for run in runs)
        refusals.append(f"data: {names}")
    # The whole split of another tokenizer has another number of rows, and is the same text.
    whole_texts = len(tokenizers) > 1 and all(map(_whole_split, runs))
    for key, what in (
        ("config.objective.shift", "evaluation: tokens are predicted at other positions, objective.shift"),
        ("metrics.validation_rows", "evaluation: rows"),
        ("config.eval.batch_size", "evaluation: masks are drawn batch by batch, of rows"),
    ):
        if len({run.get(key) for run in runs}) > 1 and not (whole_texts and key == "metrics.validation_rows"):
            refusals.append(f"{what} {_listed(str(run.get(key)) for run in runs)}")
    return refusals


def _equal_budget(runs: Sequence[RunData]) -> str | None:
    budgets = [run.get("budget") or {} for run in runs]
    if any(budget.get("mode") == "replay" for budget in budgets):
        equal = len({run.get("tokens") for run in runs}) == 1 and all(b.get("mode") == "replay" for b in budgets)
        return "tokens" if equal else None
    for name in ("tokens", "steps"):
        if len({budget.get(name) for budget in budgets}) > 1:
            return None
    seconds = {budget.get("seconds") for budget in budgets}
    devices = [run.get("world_size") or 1 for run in runs]
    if len(seconds) == 1:
        return _spent(runs, budgets[0])
    if None in seconds:
        return None
    spent = [one["seconds"] * count for one, count in zip(budgets, devices, strict=True)]
    return "device-hours" if max(spent) <= 1.001 * min(spent) else None


def _spent(runs: Sequence[RunData], budget: dict[str, Any]) -> str | None:
    """Which of the limits, the same for all runs, ended them."""
    names = {"seconds": "wall-clock", "tokens": "tokens", "steps": "steps"}
    limits = [key for key in names if budget.get(key) is not None]
    for key in ("tokens", "steps"):
        if key in limits and all((run.get(key) or 0) >= budget[key] for run in runs):
            return names[key]
    return " or ".join(names[key] for key in limits) or None


def _on(run: RunData) -> str:
    devices = run.get("world_size") or 1
    return f" on {devices} devices" if devices > 1 else ""


def _text(run: RunData) -> str:
    """Of what was tokenized: sources and the size of the held-out text."""
    split = run.get("data.splits.validation") or {}
    return _digest([run.get("data.sources"), split.get("documents"), split.get("characters")])


def _cautions(runs: Sequence[RunData]) -> list[str]:
    cautions = []
    for key, what in (
        ("environment.cpu", "processors"),
        ("environment.gpus", "GPUs"),
        ("environment.threads", "CPU threads"),
        ("environment.libraries.torch", "versions of torch"),
        ("environment.git_revision", "revisions of cram-composer"),
        ("world_size", "numbers of devices"),
    ):
        values = {json.dumps(run.get(key)) for run in runs}
        if len(values) > 1:
            cautions.append(f"different {what}: {_listed(json.dumps(run.get(key)) for run in runs)}")
    if any(one.get("reason") != "branched" for run in runs for one in (run.get("attempts") or [])[:-1]):
        cautions.append("some runs were interrupted and resumed; what they lost counts as spent")
    return cautions


def _listed(values: Iterable[str]) -> str:
    return " against ".join(dict.fromkeys(values))
