"""After the budget is spent, outside it: the final evaluation, the export, the run's page, and the record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.utils import dist
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from cram_composer.algorithms.averaging.weight_average import WeightAverage, saved_average
from cram_composer.analysis.report.report import write_report
from cram_composer.config.schema.model import ModelConfig
from cram_composer.data.manifest import summarize
from cram_composer.errors import CramError
from cram_composer.evaluation.held_out import build_held_out_evaluator
from cram_composer.models.card import model_card
from cram_composer.models.crambert.modeling_crambert import CramBertForMaskedLM
from cram_composer.models.export import export_model, exported_form, fill_masks, verify_export
from cram_composer.models.factory import build_model
from cram_composer.runs.folder import RECORD, RECORD_FORMAT, RunFolder, device_hours
from cram_composer.runs.mirror import report_failure
from cram_composer.storage.files import read_json
from cram_composer.train.checkpointing import load_state, newest_checkpoint
from cram_composer.train.session import Session


def finish(run: Session, status: str, reason: str | None) -> int:
    """Evaluate on more rows than the loop did, export, draw the page, copy it all. Collective.

    Returns the process's exit status: 1 when `runs_remote` could not be written.
    """
    ledger = run.ledger
    with ledger.outside_budget("final_eval"):
        run.trainer.eval(
            eval_dataloader=build_held_out_evaluator("final", run.final_batches, run.config.eval.batch_size)
        )
        metrics = {name: float(value.compute()) for name, value in run.trainer.state.eval_metrics["final"].items()}
    run.extra["metrics"] = {
        "validation_loss": metrics["loss"],
        "validation_accuracy": metrics["accuracy"],
        "validation_bits_per_token": metrics["loss"] / math.log(2.0),
        "validation_rows": sum(batch["input_ids"].shape[0] for batch in run.final_batches) * dist.get_world_size(),
    }
    run.trainer.close()
    if dist.get_global_rank() != 0:
        return 0
    if run.config.export.enabled:
        # Not over yet: a run that is killed from here on evaluates and exports again when it is started again.
        write_record(run, "running", reason)
        with ledger.outside_budget("export"):
            run.extra["metrics"]["fills"] = _export(run)
    problem = None
    if run.remote is not None:
        with ledger.outside_budget("upload"):
            problem = run.remote.upload_files()
    write_record(run, status, reason)
    _print_summary(run)
    _draw_page(run.folder.path)
    if run.remote is None:
        return 0
    problem = problem or run.remote.finalize()
    if problem is not None:
        return report_failure(run.remote, problem)
    print(f"copy:   {run.remote.uri}")
    return 0


def _export(run: Session) -> list[dict[str, Any]]:
    if not run.strategy.is_replicated:
        return _export_saved(run)
    network = run.model.model
    averages = [algorithm for algorithm in run.trainer.state.algorithms if isinstance(algorithm, WeightAverage)]
    for average in averages:
        average.swap_in(run.trainer.state.model)
    record = read_json(run.folder.path / RECORD)
    _write_export(network, record, run.data.manifest, run.data.tokenizer, run.folder.path / "export")
    fills = _fill(network, run.data.tokenizer, run.config.export.sentences)
    for average in averages:
        average.swap_out(run.trainer.state.model)
    return fills


def _export_saved(run: Session) -> list[dict[str, Any]]:
    """What a rank that holds parts of the weights can export: the last checkpoint, which is complete."""
    record = read_json(run.folder.path / RECORD)
    network = _saved_network(run.folder.path, record)
    _write_export(network, record, run.data.manifest, run.data.tokenizer, run.folder.path / "export")
    return _fill(network, run.data.tokenizer, run.config.export.sentences)


def _write_export(
    network: PreTrainedModel, record: dict[str, Any], manifest: Mapping[str, Any], tokenizer: Path, destination: Path
) -> Path:
    form = exported_form(network)
    card = model_card(record, manifest, custom_code=isinstance(form, CramBertForMaskedLM))
    target = export_model(form, tokenizer, destination, card)
    verify_export(target, network)
    return target


def _fill(network: PreTrainedModel, tokenizer_dir: Path, sentences: list[str]) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    predictions = fill_masks(network, tokenizer, [text.replace("[MASK]", tokenizer.mask_token) for text in sentences])
    return [{"sentence": s, "predictions": p} for s, p in zip(sentences, predictions, strict=True)]


def _draw_page(path: Path) -> None:
    # Whatever is wrong with a drawing, the run is over and its results are on disk.
    try:
        print(f"page:   {write_report([path])}")
    except Exception as error:
        print(f"page:   not drawn ({type(error).__name__}: {error}); try again with: cram report {path}")


def _print_summary(run: Session) -> None:
    metrics, spent = run.extra["metrics"], run.ledger.elapsed()
    tokens = int(run.trainer.state.timestamp.token)
    print(f"\nheld-out loss {metrics['validation_loss']:.3f} nats at 15 % [MASK]", end="")
    print(f" (unigram model {run.data.manifest['unigram_validation_nats']:.3f}),", end=" ")
    print(f"masked accuracy {100 * metrics['validation_accuracy']:.1f} %")
    print(f"{tokens:,} tokens in {spent:.1f} s of budget, {tokens / max(spent, 1e-9):,.0f} tokens/s")
    inside = run.ledger.snapshot()
    print("where it went: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in inside.items() if seconds))
    for fill in metrics.get("fills", []):
        words = ", ".join(f"{token} ({100 * probability:.0f} %)" for token, probability in fill["predictions"])
        print(f"  {fill['sentence']}  ->  {words}")
    if run.config.export.enabled:
        print(f"model:  {run.folder.path / 'export'}")


def write_record(run: Session, status: str, reason: str | None = None) -> None:
    """Write record.json and config.yaml as things stand; only rank 0 does."""
    if dist.get_global_rank() != 0:
        return
    timestamp = run.trainer.state.timestamp
    spent = run.ledger.snapshot()
    total = sum(spent.values())
    last = run.attempts[-1] if run.attempts else {}
    losses = run.trace.recent_losses
    record = {
        "format_version": RECORD_FORMAT,
        "run_name": run.folder.path.name,
        "status": status,
        "reason": reason,
        "recipes": run.config.recipes,
        "config": run.composed.plain,
        "provenance": run.composed.provenance,
        "config_hash": run.composed.hash,
        "environment": run.environment,
        "world_size": dist.get_world_size(),
        "device_hours": device_hours(run.attempts, total, dist.get_world_size()),
        "parameters": run.parameters,
        "kernels": run.kernels(),
        "data": summarize(run.data.manifest),
        "budget": run.budget.describe(),
        "steps": int(timestamp.batch),
        "tokens": int(timestamp.token),
        "epochs": run.loader.stream.epochs,  # times that the budget went through the data
        "tokens_per_second": int(timestamp.token) / total if total else None,
        # Times tokens_per_second it is the model FLOP/s of the whole budget.
        "flops_per_token": run.flops_per_token,
        "steps_skipped": run.guard.skipped,
        "ledger": {
            "inside": spent,
            "inside_total": total,
            # The loop by another clock than the ledger's: what earlier starts spent, and this one's time in fit().
            "wall_seconds": last["spent_before"] + last["wall_seconds"] if "wall_seconds" in last else None,
            "outside": dict(run.ledger.outside),
            "last_step_seconds": run.trace.last_step_seconds,
        },
        "energy": run.energy,
        "metrics": {"train_loss_final": sum(losses) / len(losses) if losses else None, **run.extra.get("metrics", {})},
        "attempts": run.attempts,
        **({"branched_from": run.branched_from} if run.branched_from else {}),
    }
    run.folder.write_record(_finite(json.loads(json.dumps(record, default=str))))
    run.folder.write_config(OmegaConf.to_yaml(OmegaConf.create(run.composed.plain)))


def _finite(value: Any) -> Any:
    """JSON has no NaN: a measure that is not finite is recorded as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def export_run(path: Path, destination: Path | None) -> Path:
    """Export a run's newest checkpoint, with the averaged weights if it kept any. Raises CramError, one line."""
    record = RunFolder(path).read_record()
    if record is None:
        raise CramError(f"{path}: not a run folder (it has no {RECORD})")
    network = _saved_network(path, record)
    return _write_export(network, record, record["data"], path / "tokenizer", destination or path / "export")


def _saved_network(path: Path, record: dict[str, Any]) -> PreTrainedModel:
    """The model of a run's newest checkpoint, with the averaged weights if it kept any."""
    saved = newest_checkpoint(path / "checkpoints")
    if saved is None:
        raise CramError(f"{path}: no usable checkpoint to export")
    model = ModelConfig.model_validate(record["config"]["model"])
    manifest, shift = record["data"], record["config"]["objective"]["shift"]
    network = build_model(model, manifest["vocab_size"], manifest["special_tokens"], shift=shift)
    state = load_state(saved.path)
    averages = saved_average(state["algorithms"])
    weights = averages or state["model"]
    prefix = "model."
    network.load_state_dict(
        {name.removeprefix(prefix): tensor for name, tensor in weights.items()}, strict=averages is None
    )
    return network
