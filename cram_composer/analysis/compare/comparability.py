"""Rules that decide which groups can be compared: budget, data, evaluation and machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cram_composer.analysis.compare.groups import Group, digest
from cram_composer.analysis.runs.run import RunData
from cram_composer.analysis.runs.table import budget_text
from cram_composer.config.formatting import is_number, percent
from cram_composer.data.manifest import fingerprint
from cram_composer.runs.folder import DISTURBED_SHARE

_UNEVEN_COMPILATION = 0.05  # of the budget
_UNFAIR_SPREAD = 0.2  # of the share of the CPU time that other processes took


@dataclass(frozen=True)
class Comparability:
    """Result of comparing the conditions of two groups.

    Attributes:
        budget: the quantity held equal: "wall-clock", "device-hours", "tokens", "steps" or "epochs"; None if the
            budgets differ.
        refusals: reasons why losses are not comparable, one line each, starting with what differs.
        in_loop: reason why held-out losses in the loop alone are not comparable; empty if they are.
        cautions: other differences that may matter.
        per_character: only the tokenization of the text differs, so bits per character are comparable.
    """

    budget: str | None
    refusals: list[str]
    in_loop: str
    cautions: list[str]
    per_character: bool


def comparability(a: Group, b: Group) -> Comparability:
    """Find differences in budget, data, evaluation and machine between and within two groups."""
    runs = [*a.runs, *b.runs]
    refusals = data_refusals(runs)
    per_character = len(refusals) == 1 and refusals[0].startswith("tokenizer")
    cautions = find_cautions(runs)
    if per_character and not all(map(_scores_whole_split, runs)):
        cautions.append(
            "the final evaluations cover only part of the held-out text, and the tokenizers cut it at different places"
        )
    budget = _equal_budget(runs)
    if budget is None:
        refusals.insert(0, f"budget: {_join_distinct(budget_text(run) + _devices_suffix(run) for run in runs)}")
    loads = [load for run in runs if is_number(load := run.get("others_cpu_share"))]
    if loads and budget in ("wall-clock", "device-hours") and max(loads) - min(loads) > DISTURBED_SHARE:
        found = f"other processes took {percent(min(loads))} to {percent(max(loads))} of the CPU time of a run"
        if max(loads) - min(loads) > _UNFAIR_SPREAD:
            refusals.append(f"machine: {found}; wall-clock verdicts are withheld")
        else:
            cautions.append(found)
    rows = {str(run.get("config.eval.rows")): None for run in runs}
    in_loop = f"not comparable: evaluation: rows in the loop {_join_distinct(rows)}" if len(rows) > 1 else ""
    return Comparability(budget, refusals, in_loop, cautions, per_character and len(refusals) == 1)


def _scores_whole_split(run: RunData) -> bool:
    """Return True if the final evaluation covered all held-out rows, except an incomplete batch."""
    rows, asked = run.get("metrics.validation_rows"), run.get("config.eval.final_rows")
    return is_number(rows) and is_number(asked) and rows + (run.get("config.eval.batch_size") or 0) <= asked


def data_refusals(runs: Sequence[RunData]) -> list[str]:
    """Return reasons, one line each, why final held-out losses are not comparable even at equal budget."""
    refusals = []
    tokenizers = list(dict.fromkeys(run.get("data.tokenizer_sha256") for run in runs))
    if len(tokenizers) > 1:
        refusals.append(f"tokenizer: {_join_distinct(str(token)[:12] for token in tokenizers)}")
        if len({_text_digest(run) for run in runs}) > 1:
            refusals.append("data: different text")
    elif len({_fingerprint(run) for run in runs}) > 1:
        names = _join_distinct(f"{run.get('data.name')} ({_fingerprint(run)[:8]})" for run in runs)
        refusals.append(f"data: {names}")
    # Row counts differ between tokenizers even for the same text.
    whole_texts = len(tokenizers) > 1 and all(map(_scores_whole_split, runs))
    objectives = list(dict.fromkeys(run.get("config.objective.name") or "mlm" for run in runs))
    if len(objectives) > 1:
        refusals.append(f"evaluation: different objectives, objective.name {_join_distinct(objectives)}")
    for key, what in (
        ("config.objective.shift", "evaluation: different predicted positions, objective.shift"),
        ("metrics.validation_rows", "evaluation: rows"),
    ):
        if len({run.get(key) or 0 for run in runs}) > 1 and not (whole_texts and key == "metrics.validation_rows"):
            refusals.append(f"{what} {_join_distinct(str(run.get(key)) for run in runs)}")
    return refusals


def _equal_budget(runs: Sequence[RunData]) -> str | None:
    budgets = [run.get("budget") or {} for run in runs]
    if any(budget.get("mode") == "replay" for budget in budgets):
        equal = len({run.get("tokens") for run in runs}) == 1 and all(b.get("mode") == "replay" for b in budgets)
        return "tokens" if equal else None
    for name in ("tokens", "steps", "epochs"):
        if len({budget.get(name) for budget in budgets}) > 1:
            return None
    seconds = {budget.get("seconds") for budget in budgets}
    devices = [run.get("world_size") or 1 for run in runs]
    if len(seconds) == 1:
        return _binding_limit(runs, budgets[0])
    if None in seconds:
        return None
    spent = [one["seconds"] * count for one, count in zip(budgets, devices, strict=True)]
    return "device-hours" if max(spent) <= 1.001 * min(spent) else None


def _binding_limit(runs: Sequence[RunData], budget: dict[str, Any]) -> str | None:
    """Return the limit that ended the runs; all of them have the same limits."""
    names = {"seconds": "wall-clock", "tokens": "tokens", "steps": "steps", "epochs": "epochs"}
    limits = [key for key in names if budget.get(key) is not None]
    for key in ("tokens", "steps", "epochs"):
        if key in limits and all((run.get(key) or 0) >= budget[key] for run in runs):
            return names[key]
    return " or ".join(names[key] for key in limits) or None


def _devices_suffix(run: RunData) -> str:
    devices = run.get("world_size") or 1
    return f" on {devices} devices" if devices > 1 else ""


def _text_digest(run: RunData) -> str:
    """Hash that identifies the text independently of the tokenizer: sources and size of the held-out text."""
    split = run.get("data.splits.validation") or {}
    return digest([run.get("data.sources"), split.get("documents"), split.get("characters")])


def find_cautions(runs: Sequence[RunData]) -> list[str]:
    """Return differences in machine, start and interruptions that may matter, one line each."""
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
            cautions.append(f"different {what}: {_join_distinct(json.dumps(run.get(key)) for run in runs)}")
    starts = {str((run.get("init_from") or {}).get("path", "random weights")) for run in runs}
    if starts != {"random weights"}:
        cautions.append(f"not all from scratch: the runs start from {_join_distinct(sorted(starts))}")
    compiling = [share for run in runs if (share := _compile_share(run)) is not None]
    if compiling and max(compiling) - min(compiling) > _UNEVEN_COMPILATION:
        cautions.append(
            f"compilation took {percent(min(compiling))} to {percent(max(compiling))} of a run: only some found their "
            "kernels in the cache; train again, or sweep with warm_up_steps"
        )
    if any(one.get("reason") != "branched" for run in runs for one in (run.get("attempts") or [])[:-1]):
        cautions.append("some runs were interrupted and resumed; lost time counts as spent")
    return cautions


def _compile_share(run: RunData) -> float | None:
    """Return the share of the budget that compilation took."""
    compiling, total = run.get("ledger.inside.compile"), run.get("ledger.inside_total")
    return compiling / total if is_number(compiling) and is_number(total) and total else None


def _fingerprint(run: RunData) -> str:
    return fingerprint(data) if (data := run.get("data")) else ""


def _join_distinct(values: Iterable[str]) -> str:
    return " against ".join(dict.fromkeys(values))
