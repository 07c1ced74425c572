"""Work after the budget is spent: final evaluation, export, record, report and upload."""

from __future__ import annotations

import math
from pathlib import Path

from composer.utils import dist

from cram_composer.analysis.report.report import write_report
from cram_composer.evaluation.held_out import build_held_out_evaluator
from cram_composer.runs.mirror import report_failure
from cram_composer.train.export import export_session
from cram_composer.train.record import write_record
from cram_composer.train.session import Session


def finish(session: Session, status: str, reason: str | None) -> int:
    """Evaluate on more rows than during training, export, write the report and upload everything. Collective.

    Returns:
        The exit status of the process: 1 if `runs_remote` could not be written.
    """
    ledger, mirror = session.ledger, session.callbacks.mirror
    with ledger.outside_budget("final_eval"):
        _evaluate(session)
    session.trainer.close()
    if dist.get_global_rank() != 0:
        return 0
    if session.config.export.enabled:
        # Status "running", so that a run killed from here on repeats evaluation and export when it is resumed.
        write_record(session, "running", reason)
        with ledger.outside_budget("export"):
            session.extra["metrics"]["fills"] = export_session(session)
    problem = None
    if mirror is not None:
        with ledger.outside_budget("upload"):
            problem = mirror.upload_files()
    write_record(session, status, reason)
    _print_summary(session)
    _write_report(session.folder.path)
    if mirror is None:
        return 0
    problem = problem or mirror.finalize()
    if problem is not None:
        return report_failure(mirror, problem)
    print(f"copy:   {mirror.uri}")
    return 0


def _evaluate(session: Session) -> None:
    batches = session.batches.final
    session.trainer.eval(eval_dataloader=build_held_out_evaluator("final", batches, session.config.eval.batch_size))
    metrics = {name: float(value.compute()) for name, value in session.trainer.state.eval_metrics["final"].items()}
    session.extra["metrics"] = {
        "validation_loss": metrics["loss"],
        "validation_accuracy": metrics["accuracy"],
        "validation_bits_per_token": metrics["loss"] / math.log(2.0),
        "validation_rows": sum(batch["input_ids"].shape[0] for batch in batches) * dist.get_world_size(),
    }


def _write_report(path: Path) -> None:
    # The results are on disk, so an error in the report must not fail the run.
    try:
        print(f"report: {write_report([path])}")
    except Exception as error:
        print(f"report: failed ({type(error).__name__}: {error}); retry with `cram report {path}`")


def _print_summary(session: Session) -> None:
    metrics, spent = session.extra["metrics"], session.ledger.elapsed()
    tokens = int(session.trainer.state.timestamp.token)
    print(f"\nheld-out loss {metrics['validation_loss']:.3f} nats at 15 % [MASK]", end="")
    print(f" (unigram model {session.data.manifest['unigram_validation_nats']:.3f}),", end=" ")
    print(f"masked accuracy {100 * metrics['validation_accuracy']:.1f} %")
    print(f"{tokens:,} tokens in {spent:.1f} s of budget, {tokens / max(spent, 1e-9):,.0f} tokens/s")
    inside = session.ledger.snapshot()
    print("time: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in inside.items() if seconds))
    for fill in metrics.get("fills", []):
        words = ", ".join(f"{token} ({100 * probability:.0f} %)" for token, probability in fill["predictions"])
        print(f"  {fill['sentence']}  ->  {words}")
    if session.config.export.enabled:
        print(f"model:  {session.folder.path / 'export'}")
