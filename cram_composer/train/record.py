"""record.json and config.yaml of a run in progress."""

from __future__ import annotations

import json
import math
from typing import Any

from composer.utils import dist
from omegaconf import OmegaConf

from cram_composer.data.manifest import summarize
from cram_composer.runs.folder import RECORD_FORMAT, device_hours
from cram_composer.train.session import Session


def write_record(session: Session, status: str, reason: str | None = None) -> None:
    """Write record.json and config.yaml with the current state, on rank 0 only."""
    if dist.get_global_rank() != 0:
        return
    timestamp = session.trainer.state.timestamp
    spent = session.ledger.snapshot()
    total = sum(spent.values())
    losses = session.callbacks.trace.recent_losses
    record = {
        "format_version": RECORD_FORMAT,
        "run_name": session.folder.path.name,
        "status": status,
        "reason": reason,
        "recipes": session.config.recipes,
        "config": session.composed.plain,
        "provenance": session.composed.provenance,
        "config_hash": session.composed.hash,
        "environment": session.environment,
        "world_size": dist.get_world_size(),
        "device_hours": device_hours(session.attempts, total, dist.get_world_size()),
        "parameters": session.setup.parameters,
        "embedding_parameters": session.setup.embedding_parameters,
        "kernels": session.kernels(),
        "data": summarize(session.data.manifest),
        "budget": session.budget.describe(),
        "steps": int(timestamp.batch),
        "tokens": int(timestamp.token),
        "epochs": session.batches.loader.stream.epochs,  # passes over the data
        "tokens_per_second": int(timestamp.token) / total if total else None,
        # tokens_per_second * flops_per_token = model FLOP/s over the whole budget
        "flops_per_token": session.flops_per_token,
        "steps_skipped": session.guard.skipped,
        "ledger": _ledger(session, spent),
        "energy": session.energy,
        "others_cpu_share": session.callbacks.cpu_share.share,
        "metrics": {
            "train_loss_final": sum(losses) / len(losses) if losses else None,
            **session.extra.get("metrics", {}),
        },
        "attempts": session.attempts,
        **({"missing": session.missing} if session.missing else {}),
        **({"branched_from": session.branched_from} if session.branched_from else {}),
        **({"microbatch": session.microbatch} if session.microbatch else {}),
        **({"init_from": session.init_from} if session.init_from else {}),
    }
    session.folder.write_record(_without_nan(json.loads(json.dumps(record, default=str))))
    session.folder.write_config(OmegaConf.to_yaml(OmegaConf.create(session.composed.plain)))


def _ledger(session: Session, spent: dict[str, float]) -> dict[str, Any]:
    last = session.attempts[-1] if session.attempts else {}
    return {
        "inside": spent,
        "inside_total": sum(spent.values()),
        # The loop measured by a second clock: the budget of earlier attempts plus this attempt's time in fit().
        "wall_seconds": last["spent_before"] + last["wall_seconds"] if "wall_seconds" in last else None,
        "outside": dict(session.ledger.outside),
        "last_step_seconds": session.callbacks.trace.last_step_seconds,
    }


def _without_nan(value: Any) -> Any:
    """Replace numbers that are not finite by null, because JSON cannot represent them."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
