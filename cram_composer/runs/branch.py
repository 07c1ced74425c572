"""`cram branch`: a run that goes on from a kept checkpoint of another, its trunk, and lets the rate decay to zero.

A trunk trains at a constant rate. What it had learned at some time is what a shorter run of warmup, stable and decay
(WSD) would have had when its decay began, so that one long run and a short decay for every budget give a whole curve of
budgets (Hu et al. 2024, arXiv 2404.06395, section 4; Haegele et al. 2024, arXiv 2405.18392, section 4).
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cram_composer.budget.trace import TRACE
from cram_composer.config import Composed
from cram_composer.config.layers import leaves, nest
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.units import format_duration, parse_duration
from cram_composer.errors import CramError
from cram_composer.runs.branch_points import BranchPoint, branch_points
from cram_composer.runs.checkpoints import checkpoint_problem
from cram_composer.runs.folder import METRICS, RECORD
from cram_composer.runs.reproduce import read_full_record, recompose
from cram_composer.storage.files import link_or_copy, write_atomic, write_json

YAML = "branch.yaml"
_NEAR = 0.02  # share by which a kept checkpoint may be beside the time asked for, and progress behind its point
_BY_SHARE_OF_THE_BUDGET = {  # what has another value at the same step of another budget
    "algorithms.ema": "ema",
    "algorithms.swa": "swa",
    "algorithms.lawa": "lawa",
    "algorithms.layer_freezing": "layer-freezing",
    "objective.final_mlm_probability": "mask-schedule",
    "data.curriculum": "a curriculum",
}
_OVER_AFTER = {  # what no longer changes once this share of the budget is spent
    "algorithms.batch_size_ramp": "until",
    "algorithms.seq_length_warmup": "duration",
    "algorithms.stochastic_depth": "drop_warmup",
}
_KEPT_OF_THE_RECORD = (
    "format_version", "recipes", "environment", "world_size", "parameters", "kernels", "data", "flops_per_token",
)  # fmt: skip


@dataclass(frozen=True)
class Branch:
    """A branch that can be trained: its folder, its configuration, and where it comes from in words."""

    path: Path
    composed: Composed
    devices: int
    origin: str


def make_branch(trunk: Path, at: str, budget: str, *, name: str | None = None, decay_shape: str = "1-sqrt") -> Branch:
    """Make the run folder of a branch, as if it had been trained up to its branch point and stopped there.

    Args:
        trunk: run folder with kept checkpoints.
        at: when to leave it, in the unit of its budget: 2h, or a number of tokens or steps.
        budget: the branch's whole budget in that unit, what the trunk spent until then included.
        name: of the branch, beside the trunk; default: TRUNK-BUDGET.
        decay_shape: of the decay, see the schedule wsd.

    Raises:
        CramError: no kept checkpoint near, no constant rate there, or an ingredient that follows the budget's progress.
    """
    record = read_full_record(trunk)
    unit, limit = _limit(record, trunk)
    wanted, total = _amount(at, unit, "--at"), _amount(budget, unit, "--budget")
    point = _choose(branch_points(trunk), unit, limit, wanted, trunk)
    begins = point.point * limit  # of the decay: of all seeds the same, whenever their steps ended
    if total <= begins:
        raise CramError(f"--budget {budget}: the trunk had spent {_shown(begins, unit)} already; a branch needs more")
    _check_devices(record, trunk)
    _check_rate(record, point)
    _check_followers(record, point.progress, begins / total)
    if (problem := checkpoint_problem(point.path)) is not None:
        raise CramError(f"{point.path}: {problem}; branch from another checkpoint")
    path = trunk.parent / (name or f"{trunk.name}-{budget.replace(' ', '')}")
    if path.exists():
        raise CramError(f"{path}: is there already; continue it with `composer train.py {path / YAML}`, or use --name")
    changes = _schedule(record, limit, begins, total, decay_shape) | _ramps(record, limit / total)
    limits = {"seconds": ("wall", budget), "tokens": ("tokens", total), "steps": ("steps", int(total))}
    key, value = limits[unit]
    changes[f"budget.{key}"] = value
    composed = _prepare(path, trunk, record, point, changes)
    return Branch(path, composed, record["world_size"], f"step {point.step} of {trunk}")


def _limit(record: dict[str, Any], trunk: Path) -> tuple[str, float]:
    """The one limit of the trunk's budget: "seconds", "tokens" or "steps", and how many."""
    limits = {key: record["budget"].get(key) for key in ("seconds", "tokens", "steps")}
    found = [(key, float(value)) for key, value in limits.items() if value is not None]
    if len(found) != 1 or record["budget"].get("mode") == "replay":
        raise CramError(f"{trunk}: a branch needs a trunk with one limit: a wall-clock, tokens or steps")
    return found[0]


def _amount(text: str, unit: str, option: str) -> float:
    if unit == "seconds":
        return parse_duration(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise CramError(f"{option} {text}: the trunk's budget is in {unit}; give a number of them")
    return value


def _choose(points: list[BranchPoint], unit: str, limit: float, wanted: float, trunk: Path) -> BranchPoint:
    if not points:
        raise CramError(
            f"{trunk}: keeps no checkpoint to branch from; train it with checkpoint.branch_at=[0.25,0.5] or the like"
        )
    nearest = min(points, key=lambda point: abs(point.point * limit - wanted))
    if abs(nearest.point * limit - wanted) > _NEAR * wanted:
        there = ", ".join(_shown(point.point * limit, unit) for point in points)
        raise CramError(f"--at: {trunk} kept no checkpoint at {_shown(wanted, unit)}; there are some at {there}")
    if nearest.progress - nearest.point > _NEAR:
        raise CramError(
            f"--at: {trunk} was interrupted there, and kept its checkpoint at {nearest.progress:.1%} of its budget "
            f"instead of {nearest.point:.1%}; branch from another"
        )
    return nearest


def _check_devices(record: dict[str, Any], trunk: Path) -> None:
    """Shares of a budget and device-hours are of one number of devices."""
    counts = sorted({attempt.get("world_size", record["world_size"]) for attempt in record.get("attempts", [])})
    if len(counts) > 1:
        raise CramError(
            f"{trunk}: was trained on {' and '.join(map(str, counts))} devices; a trunk of branches has one number"
        )


def _shown(amount: float, unit: str) -> str:
    return format_duration(amount) if unit == "seconds" else f"{amount:,.0f} {unit}"


def _check_rate(record: dict[str, Any], point: BranchPoint) -> None:
    """The rate at the branch point must be the peak, after the warmup and before any decay."""
    schedule = record["config"]["schedule"]
    name, warmup = schedule["name"], _given(schedule, "warmup")
    if name not in ("constant", "wsd"):
        raise CramError(
            f"schedule.name: the trunk has '{name}'; only at a constant rate can others go on from the middle: train "
            "it with the recipe schedule-constant or schedule-wsd"
        )
    end = 1.0 - _given(schedule, "decay") if name == "wsd" else 1.0
    if not warmup <= point.progress <= end:
        raise CramError(
            f"--at: the rate of the trunk is constant from {warmup:.0%} to {end:.0%} of its budget, and this is "
            f"{point.progress:.1%}"
        )


def _check_followers(record: dict[str, Any], before: float, after: float) -> None:
    """Refuse what would jump where a branch begins, since the same step is another share of another budget."""
    values = leaves(record["config"])
    for key, name in _BY_SHARE_OF_THE_BUDGET.items():
        if any(value not in (None, [], {}) for other, value in values.items() if f"{other}.".startswith(f"{key}.")):
            raise CramError(
                f"{key}: {name} goes by shares of the budget, so that a branch is not what a run is; drop it"
            )
    for key, name in _OVER_AFTER.items():
        until = values.get(f"{key}.{name}")
        if until is not None and until > min(before, after):
            raise CramError(
                f"{key}: is not over before {until:.0%} of the budget, and the branch begins at {before:.1%} of the "
                f"trunk's and {after:.1%} of its own; set {key}=null for the trunk"
            )


def _ramps(record: dict[str, Any], longer: float) -> dict[str, Any]:
    """What is over already ended at this share of the branch's budget."""
    values = leaves(record["config"])
    ends = {f"{key}.{name}": values.get(f"{key}.{name}") for key, name in _OVER_AFTER.items()}
    return {key: until * longer for key, until in ends.items() if until is not None}


def _schedule(record: dict[str, Any], limit: float, begins: float, total: float, shape: str) -> dict[str, Any]:
    """WSD that is at this point where the trunk was, and decays from here on."""
    schedule = record["config"]["schedule"]
    own = {
        "name": "wsd",
        "start": _given(schedule, "start"),
        "warmup": _given(schedule, "warmup") * limit / total,
        "decay": 1.0 - begins / total,
        "decay_shape": shape,
        "final": 0.0,
    }
    return {f"schedule.{key}": value for key, value in own.items()}


def _given(schedule: dict[str, Any], key: str) -> float:
    """A value of the trunk's schedule; where it is not set, the schedule's own default."""
    return float(getattr(RunConfig.model_validate({"schedule": schedule}).schedule, key))


def _prepare(path: Path, trunk: Path, record: dict[str, Any], point: BranchPoint, changes: dict[str, Any]) -> Composed:
    """Write the folder under a temporary name and rename it."""
    wanted = leaves(record["config"])
    wanted |= {"run_name": path.name, "runs_dir": str(path.parent.resolve()), "checkpoint.branch_at": []}
    wanted |= {f"budget.{key}": None for key in record["config"]["budget"]} | changes
    values, composed = recompose(wanted, record["provenance"])
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        (scratch / "checkpoints").mkdir(parents=True)
        link_or_copy(point.path, scratch / "checkpoints" / point.path.name)
        shutil.copyfile(point.path.with_suffix(".json"), scratch / "checkpoints" / f"{point.path.stem}.json")
        for name in (TRACE, METRICS):
            if (trunk / name).is_file():
                shutil.copyfile(trunk / name, scratch / name)
        shutil.copytree(trunk / "tokenizer", scratch / "tokenizer")
        write_atomic(scratch / YAML, OmegaConf.to_yaml(OmegaConf.create(nest(values))))
        write_json(scratch / RECORD, _record(record, composed, trunk, point, path.name))
        os.rename(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return composed


def _record(record: dict[str, Any], composed: Composed, trunk: Path, point: BranchPoint, name: str) -> dict[str, Any]:
    """The record of a run that was stopped at the branch point."""
    attempts = [one for one in record.get("attempts", []) if one["started_at_step"] < point.step]
    last = attempts[-1]
    ended = {"ended_at_step": point.step, "wall_seconds": point.elapsed - last["spent_before"], "reason": "branched"}
    return {key: record.get(key) for key in _KEPT_OF_THE_RECORD} | {
        "run_name": name,
        "status": "interrupted",
        "reason": f"branched from {trunk.name} at step {point.step}",
        "config": composed.plain,
        "provenance": composed.provenance,
        "config_hash": composed.hash,
        "steps": point.step,
        "tokens": point.tokens,
        "device_hours": point.elapsed * record["world_size"] / 3600.0,
        "ledger": {"inside_total": point.elapsed, "outside": {}},
        "metrics": {},
        "attempts": [*attempts[:-1], {**last, **ended}],
        "branched_from": {
            "run": trunk.name,
            "config_hash": record["config_hash"],
            "step": point.step,
            "elapsed": point.elapsed,
            "tokens": point.tokens,
        },
    }
