"""Work after the budget is spent: final checkpoint, evaluation, export, record, report and upload."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import torch
from composer.utils import dist

from cram_composer.config.native_forms import fills_masks
from cram_composer.errors import CramError, describe_error
from cram_composer.evaluation.held_out import build_held_out_evaluator, held_out_label
from cram_composer.models.metrics import DETECTION, MaskedLoss
from cram_composer.runs.checkpoints import newest_checkpoint
from cram_composer.runs.folder import DISTURBED_SHARE, ROW_LOSSES
from cram_composer.runs.mirror import report_failure
from cram_composer.scaleout.peer_failure import peer_failure
from cram_composer.storage.files import naming_full_disk, write_atomic
from cram_composer.train.complete import report_problem
from cram_composer.train.export import export_session
from cram_composer.train.profile import profile_steps
from cram_composer.train.record import write_record
from cram_composer.train.session import Session


def finish(session: Session, status: str, reason: str | None, saved: bool) -> int:
    """Save, evaluate on more rows than during training, export, write the report and upload everything. Collective.

    A failure is recorded with its cause. The next start of the run repeats what is missing without training.

    Args:
        session: a run whose loop has ended.
        status: "finished" or "stopped-early".
        reason: why it was stopped early.
        saved: the last step is in a checkpoint.

    Returns:
        The exit status of the process: 1 if the report or `runs_remote` could not be written.

    Raises:
        CramError: no checkpoint, evaluation or export could be made.
    """
    task = _Task(session)
    try:
        with naming_full_disk(session.folder.path):
            if not saved:
                with task("final_checkpoint"):
                    session.callbacks.checkpoints.save(session.trainer.state)
            write_record(session, "running", reason)  # with the end of the loop, which a resumed run does not repeat
            with task("final_eval"):
                _evaluate(session)
            session.trainer.close()
            if dist.get_global_rank() != 0:
                _profile(session)
                return 0
            if session.config.export.enabled:
                write_record(session, "running", reason)  # with the results of the evaluation, for the model card
                with task("export"):
                    session.extra["metrics"]["fills"] = export_session(session)
            exit_status = _publish(session, status, reason)
            task.name = "profile"
            _profile(session)
            return exit_status
    except BaseException as error:
        failure = _recorded(session, task.name, error)
        if failure is error:
            raise
        raise failure from error


class _Task:
    """The task that a finishing run is at, timed outside its budget."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.name = "record"

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.name = name
        with self._session.ledger.outside_budget(name):
            yield
        self.name = "record"


def _profile(session: Session) -> None:
    if session.config.train.profile is not None:
        profile_steps(session, session.config.train.profile)


def _recorded(session: Session, task: str, error: BaseException) -> BaseException:
    """Record the failure of a task after the loop; return the error to raise."""
    stopped = not isinstance(error, Exception)  # Ctrl-C or SIGTERM
    failure = peer_failure(error) or error
    cause = f"{task}: {describe_error(failure)}"
    with contextlib.suppress(OSError):  # of a full disk
        write_record(session, "interrupted" if stopped else "failed", f"after the last step, {cause}")
    if stopped or (isinstance(failure, CramError) and failure is not error):
        return failure
    saved = newest_checkpoint(session.folder.checkpoints, quiet=True)
    kept = f"step {saved.step} is saved" if saved is not None else "no checkpoint is saved"
    return CramError(f"{session.folder.path}: {cause}; {kept}; run the same command to do what is missing")


def _publish(session: Session, status: str, reason: str | None) -> int:
    """Record the results, write the report and upload everything; return the exit status."""
    mirror, path = session.callbacks.mirror, session.folder.path
    problem = None
    if mirror is not None:
        with session.ledger.outside_budget("upload"):
            problem = mirror.upload_in_time()
    session.missing = {"report": "interrupted"}
    write_record(session, status, reason)
    _print_summary(session)
    report_failed = report_problem(path)
    session.missing = {"report": report_failed} if report_failed is not None else {}
    write_record(session, status, reason)
    if mirror is not None:
        problem = problem or mirror.finalize_in_time()
        if problem is not None:
            session.missing["upload"] = describe_error(problem)
            write_record(session, status, reason)
            return report_failure(mirror, problem)
        print(f"copy:   {mirror.uri}")
    return 0 if report_failed is None else 1


def _evaluate(session: Session) -> None:
    found = {}
    losses: list[torch.Tensor] = []  # of the rows of the validation split, by batch
    for held_out in session.batches.held_out:
        label = held_out_label("final", held_out.name)
        measures = session.setup.model.get_metrics(is_train=False)
        evaluator = build_held_out_evaluator(label, held_out.final, session.config.eval.batch_size, measures)
        session.trainer.eval(eval_dataloader=evaluator)
        measured = session.trainer.state.eval_metrics[label]
        found[held_out.name] = {metric: float(value.compute()) for metric, value in measured.items()}
        if not held_out.name:
            losses = cast(MaskedLoss, measured["loss"]).rows
    metrics = found.pop("")
    rows = sum(batch["input_ids"].shape[0] for batch in session.batches.held_out[0].final)
    session.extra["metrics"] = {
        "validation_loss": metrics["loss"],
        "validation_accuracy": metrics["accuracy"],
        "validation_bits_per_token": metrics["loss"] / math.log(2.0),
        "validation_rows": rows * dist.get_world_size(),
    }
    if detection := {name: metrics[name] for name in DETECTION if name in metrics}:
        session.extra["metrics"]["detection"] = detection
    if found:
        session.extra["metrics"]["held_out"] = found
    _save_row_losses(session, torch.stack(losses))


def _save_row_losses(session: Session, losses: torch.Tensor) -> None:
    """Write the losses of this rank's batches, [batches, rows, 2], and those of the other ranks. Collective."""
    gathered = dist.all_gather_object(losses.cpu())
    if dist.get_global_rank() == 0:
        in_order = torch.stack(gathered, dim=1).reshape(-1, 2)  # batches were dealt to the ranks in turn
        buffer = io.BytesIO()
        np.save(buffer, in_order.numpy().astype(np.float32))
        write_atomic(session.folder.path / ROW_LOSSES, buffer.getvalue())


def _print_summary(session: Session) -> None:
    metrics, spent = session.extra["metrics"], session.ledger.elapsed()
    tokens = int(session.trainer.state.timestamp.token)
    whose = "" if fills_masks(session.config.objective.model_dump()) else "generator's "
    print(f"\n{whose}held-out loss {metrics['validation_loss']:.3f} nats at 15 % [MASK]", end="")
    print(f" (unigram model {session.data.manifest['unigram_validation_nats']:.3f}),", end=" ")
    print(f"masked accuracy {100 * metrics['validation_accuracy']:.1f} %")
    if detection := metrics.get("detection"):
        shares = f"{100 * detection['detected']:.1f} % of replaced and {100 * detection['false_alarms']:.1f} % of other"
        print(f"detector: loss {detection['detector_loss']:.4f} nats, takes {shares} tokens for replaced")
    for name, of_set in metrics.get("held_out", {}).items():
        print(f"{name}: held-out loss {of_set['loss']:.3f} nats, masked accuracy {100 * of_set['accuracy']:.1f} %")
    print(f"{tokens:,} tokens in {spent:.1f} s of budget, {tokens / max(spent, 1e-9):,.0f} tokens/s")
    inside = session.ledger.snapshot()
    others = session.callbacks.cpu_share.share or 0.0
    if others > DISTURBED_SHARE:
        print(f"other processes took {100 * others:.0f} % of the CPU time")
    print("time: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in inside.items() if seconds))
    for fill in metrics.get("fills", []):
        words = ", ".join(f"{token} ({100 * probability:.0f} %)" for token, probability in fill["predictions"])
        print(f"  {fill['sentence']}  ->  {words}")
    if session.config.export.enabled:
        print(f"model:  {session.folder.path / 'export'}")
