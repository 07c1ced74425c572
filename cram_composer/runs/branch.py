"""`cram branch`: continue from a kept checkpoint of a run (the trunk) with a learning rate that decays to zero.

A trunk trains at a constant rate. Its state at any time equals that of a shorter warmup-stable-decay (WSD) run at the
start of its decay, so one long run plus a short decay per budget gives a whole curve of budgets (Hu et al. 2024,
arXiv 2404.06395, section 4; Haegele et al. 2024, arXiv 2405.18392, section 4).
"""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cram_composer.budget.trace import TRACE
from cram_composer.config import Composed
from cram_composer.config.layers import flatten, unflatten
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.units import format_duration, parse_duration
from cram_composer.config.validation.branches import RAMP_ENDS, check_constant_rate, check_progress_dependent
from cram_composer.config.validation.run import check_run
from cram_composer.errors import CramError
from cram_composer.runs.branch_points import BranchPoint, list_branch_points
from cram_composer.runs.checkpoints import checkpoint_problem
from cram_composer.runs.derived import DerivedRun, unused_folder
from cram_composer.runs.folder import METRICS, RECORD
from cram_composer.runs.reproduce import read_reproducible_record, recompose
from cram_composer.storage.files import link_or_copy, write_atomic, write_json

_YAML = "branch.yaml"
# Largest relative distance of a checkpoint from the requested time, and of its progress from its point.
_TOLERANCE = 0.02
_LATEST_SECONDS = 2.0  # allowed delay of a checkpoint in a short budget, by a long step or a pause of the machine
_COPIED_RECORD_KEYS = (
    "format_version", "recipes", "environment", "world_size", "parameters", "embedding_parameters", "kernels", "data",
    "flops_per_token",
)  # fmt: skip


def create_branch(
    trunk: Path, at: str, budget: str, *, name: str | None = None, decay_shape: str = "1-sqrt"
) -> DerivedRun:
    """Create the run folder of a branch, in the state of a run that was stopped at the branch point.

    Args:
        trunk: run folder with kept checkpoints.
        at: where to branch, in the unit of the trunk's budget: 2h, or a number of tokens, steps or epochs.
        budget: the branch's whole budget in that unit, including what the trunk spent until then.
        name: run name of the branch; default: TRUNK-BUDGET.
        decay_shape: see the schedule wsd.

    Raises:
        CramError: no kept checkpoint nearby, no constant rate there, or a setting scheduled by budget progress.
    """
    record = read_reproducible_record(trunk)
    unit, limit = _budget_limit(record, trunk)
    wanted, total = _parse_amount(at, unit, "--at"), _parse_amount(budget, unit, "--budget")
    point = _nearest_branch_point(list_branch_points(trunk), unit, limit, wanted, trunk)
    decay_start = point.point * limit  # of the requested point: equal for all seeds, whenever their steps ended
    if total <= decay_start:
        raise CramError(
            f"--budget {budget}: must be > {_format_amount(decay_start, unit)}, spent by the trunk before the branch"
        )
    _check_devices(record, trunk)
    check_constant_rate(_trunk_schedule(record), point.point, "--at")
    check_progress_dependent(record["config"], point.point, decay_start / total)
    if (problem := checkpoint_problem(point.path)) is not None:
        raise CramError(f"{point.path}: {problem}; branch from another checkpoint")
    default_name = f"{trunk.name}-{budget.replace(' ', '')}"
    path = unused_folder(trunk, default_name if name is None else name, _YAML)
    changes = _branch_schedule(record, limit, decay_start, total, decay_shape) | _rescaled_ramps(record, limit / total)
    key = "wall" if unit == "seconds" else unit
    changes[f"budget.{key}"] = {"seconds": budget, "steps": int(total)}.get(unit, total)
    composed = _write_folder(path, trunk, record, point, changes)
    return DerivedRun(path / _YAML, composed, record["world_size"], f"step {point.step} of {trunk}")


def _budget_limit(record: dict[str, Any], trunk: Path) -> tuple[str, float]:
    """Return the trunk's only budget limit: its unit ("seconds", "tokens", "steps" or "epochs") and its amount."""
    limits = {key: record["budget"].get(key) for key in ("seconds", "tokens", "steps", "epochs")}
    found = [(key, float(value)) for key, value in limits.items() if value is not None]
    if len(found) != 1 or record["budget"].get("mode") == "replay":
        raise CramError(
            f"{trunk}: a branch needs a trunk with exactly one budget limit: seconds, tokens, steps or epochs"
        )
    return found[0]


def _parse_amount(text: str, unit: str, option: str) -> float:
    if unit == "seconds":
        return parse_duration(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise CramError(f"{option} {text}: must be a number of {unit}, the unit of the trunk's budget")
    return value


def _nearest_branch_point(
    points: list[BranchPoint], unit: str, limit: float, wanted: float, trunk: Path
) -> BranchPoint:
    if not points:
        raise CramError(f"{trunk}: has no checkpoint to branch from; train it with checkpoint.branch_at=[0.25,0.5]")
    nearest = min(points, key=lambda point: abs(point.point * limit - wanted))
    if abs(nearest.point * limit - wanted) > _TOLERANCE * wanted:
        available = ", ".join(_format_amount(point.point * limit, unit) for point in points)
        raise CramError(f"--at: {trunk} has no checkpoint at {_format_amount(wanted, unit)}; choose from {available}")
    allowed = max(_TOLERANCE * limit, _LATEST_SECONDS if unit == "seconds" else 0.0)
    if (nearest.progress - nearest.point) * limit > allowed:
        raise CramError(
            f"--at: {trunk} was interrupted there and saved its checkpoint at {nearest.progress:.1%} of its budget "
            f"instead of {nearest.point:.1%}; branch from another checkpoint"
        )
    return nearest


def _check_devices(record: dict[str, Any], trunk: Path) -> None:
    """Raise CramError if the number of devices changed: budget shares and device-hours assume one number."""
    counts = sorted({attempt.get("world_size", record["world_size"]) for attempt in record.get("attempts", [])})
    if len(counts) > 1:
        raise CramError(
            f"{trunk}: was trained on {' and '.join(map(str, counts))} devices; a branch needs a trunk with one number "
            "of devices"
        )


def _format_amount(amount: float, unit: str) -> str:
    if unit == "seconds":
        return format_duration(amount)
    return f"{amount:g} epochs" if unit == "epochs" else f"{amount:,.0f} {unit}"


def _rescaled_ramps(record: dict[str, Any], scale: float) -> dict[str, Any]:
    """Rescale the ends of finished ramps to the branch's budget."""
    values = flatten(record["config"])
    ends = {f"{key}.{name}": values.get(f"{key}.{name}") for key, name in RAMP_ENDS.items()}
    return {key: until * scale for key, until in ends.items() if until is not None}


def _branch_schedule(
    record: dict[str, Any], limit: float, decay_start: float, total: float, shape: str
) -> dict[str, Any]:
    """Return the values of a WSD schedule that matches the trunk up to the branch point and decays from there."""
    schedule = _trunk_schedule(record)
    values = {
        "name": "wsd",
        "start": schedule.start,
        "warmup": schedule.warmup * limit / total,
        "decay": 1.0 - decay_start / total,
        "decay_shape": shape,
        "final": 0.0,
    }
    return {f"schedule.{key}": value for key, value in values.items()}


def _trunk_schedule(record: dict[str, Any]) -> Any:
    """Return the trunk's schedule, with its defaults where the record sets none."""
    return RunConfig.model_validate({"schedule": record["config"]["schedule"]}).schedule


def _write_folder(
    path: Path, trunk: Path, record: dict[str, Any], point: BranchPoint, changes: dict[str, Any]
) -> Composed:
    """Write the run folder of a branch under a temporary name and rename it."""
    wanted = flatten(record["config"])
    wanted |= {"run_name": path.name, "runs_dir": str(path.parent.resolve()), "checkpoint.branch_at": []}
    wanted |= {f"budget.{key}": None for key in record["config"]["budget"]} | changes
    values, composed = recompose(wanted, record["provenance"])
    check_run(composed.config, record["world_size"])
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        (scratch / "checkpoints").mkdir(parents=True)
        link_or_copy(point.path, scratch / "checkpoints" / point.path.name)
        shutil.copyfile(point.path.with_suffix(".json"), scratch / "checkpoints" / f"{point.path.stem}.json")
        for name in (TRACE, METRICS):
            if (trunk / name).is_file():
                shutil.copyfile(trunk / name, scratch / name)
        shutil.copytree(trunk / "tokenizer", scratch / "tokenizer")
        write_atomic(scratch / _YAML, OmegaConf.to_yaml(OmegaConf.create(unflatten(values))))
        write_json(scratch / RECORD, _branch_record(record, composed, trunk, point, path.name))
        os.rename(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return composed


def _branch_record(
    record: dict[str, Any], composed: Composed, trunk: Path, point: BranchPoint, name: str
) -> dict[str, Any]:
    """Return the record of a run that was stopped at the branch point."""
    attempts = [one for one in record.get("attempts", []) if one["started_at_step"] < point.step]
    last = attempts[-1]
    ended = {"ended_at_step": point.step, "wall_seconds": point.elapsed - last["spent_before"], "reason": "branched"}
    return {key: record.get(key) for key in _COPIED_RECORD_KEYS} | {
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
