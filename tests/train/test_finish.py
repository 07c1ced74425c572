"""Failures after the loop: each is recorded, and the same command does what is missing without training again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest

from cram_composer.config import Composed
from cram_composer.errors import CramError
from cram_composer.train.launch import start
from tests.tiny_runs import TinyRuns, compose_tiny, losses, record, run_tiny, same, saved

EXPORT = ["export.enabled=true", "export.sentences=['ba [MASK] ke']"]


@pytest.fixture(scope="module")
def runs(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    return TinyRuns(tiny_data, tmp_path_factory.mktemp("finish"))


@pytest.fixture(scope="module")
def whole(runs: TinyRuns) -> Path:
    return runs("whole", *EXPORT)


def train_with_failure(composed: Composed, path: Path, target: str, error: BaseException) -> None:
    with mock.patch(f"cram_composer.{target}", side_effect=error):
        run_tiny(composed, path)


@pytest.mark.parametrize(
    ("target", "error", "cause"),
    [
        ("train.finish._evaluate", RuntimeError("out of memory"), "final_eval: RuntimeError: out of memory"),
        ("train.finish.export_session", OSError(28, "No space left on device"), "export: {run}: the disk is full"),
    ],
)
def test_failure_after_the_loop_is_recorded_and_made_up_for(
    target: str, error: Exception, cause: str, whole: Path, runs: TinyRuns, tiny_data: Path
) -> None:
    run = whole.with_name(target)
    composed = compose_tiny(tiny_data, *EXPORT)
    cause = cause.format(run=run)
    with pytest.raises(CramError, match="step 10 is saved; run the same command to do what is missing") as failure:
        runs.call(train_with_failure, composed, run, target, error)
    assert str(failure.value).startswith(f"{run}: {cause}") and "\n" not in str(failure.value)
    failed = record(run)
    assert failed["status"] == "failed" and failed["reason"].startswith(f"after the last step, {cause}")
    assert not (run / "export").exists()

    runs.continue_run(run, composed)
    ended = record(run)
    assert ended["status"] == "finished" and ended["reason"] is None
    assert [attempt["reason"] for attempt in ended["attempts"]] == ["finished", "finished"]
    assert ended["attempts"][1]["started_at_step"] == ended["attempts"][1]["ended_at_step"] == 10
    assert ended["ledger"]["inside"] == pytest.approx(failed["ledger"]["inside"], abs=0.1)
    assert ended["metrics"] == record(whole)["metrics"]
    assert losses(run) == losses(whole) and same(saved(run)["model"], saved(whole)["model"])
    assert (run / "export" / "model.safetensors").is_file()


def test_failed_save_leaves_no_file_and_the_run_resumes(runs: TinyRuns, tiny_data: Path, whole: Path) -> None:
    run = whole.with_name("unsaved")
    composed = compose_tiny(tiny_data, "checkpoint.interval=1h")  # the only save is the final one
    error = RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")
    with pytest.raises(CramError, match=r"step-00000010.pt: the disk is full; .* no checkpoint is saved"):
        runs.call(fail_to_save, composed, run, error)
    assert record(run)["status"] == "failed" and record(run)["reason"].startswith(
        "after the last step, final_checkpoint"
    )
    assert list((run / "checkpoints").iterdir()) == []
    runs.continue_run(run, composed)
    assert record(run)["status"] == "finished" and losses(run) == losses(whole)


def fail_to_save(composed: Composed, path: Path, error: BaseException) -> None:
    with mock.patch("shutil.disk_usage", return_value=mock.Mock(free=0)):
        train_with_failure(composed, path, "train.checkpointing.torch.save", error)


def test_interrupt_after_the_loop_is_recorded(runs: TinyRuns, tiny_data: Path, whole: Path) -> None:
    run = whole.with_name("interrupted")
    runs.call(terminate_in_evaluation, compose_tiny(tiny_data), run)
    assert record(run)["status"] == "interrupted"
    assert record(run)["reason"] == "after the last step, final_eval: SystemExit: 143"


def terminate_in_evaluation(composed: Composed, path: Path) -> None:
    with pytest.raises(SystemExit):
        train_with_failure(composed, path, "train.finish._evaluate", SystemExit(143))


def test_run_that_was_stopped_early_stays_stopped(runs: TinyRuns, tiny_data: Path, whole: Path) -> None:
    run = whole.with_name("early")
    composed = compose_tiny(tiny_data, *EXPORT, "budget.steps=20", "train.early_stop={loss_above: 0.1, at: 0.3}")
    with pytest.raises(CramError, match="no memory"):
        runs.call(train_with_failure, composed, run, "train.finish.export_session", RuntimeError("no memory"))
    steps = record(run)["steps"]
    runs.continue_run(run, composed)
    ended = record(run)
    assert ended["status"] == "stopped-early" and "train.early_stop.loss_above = 0.1" in ended["reason"]
    assert ended["steps"] == steps == 10 and len(losses(run)) == steps
    assert (run / "export").is_dir()


def test_missing_report_is_written_by_the_same_command(whole: Path, tiny_data: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    assert "missing" not in record(run)
    (run / "record.json").write_text(json.dumps(record(run) | {"missing": {"report": "interrupted"}}))
    (run / "figures").mkdir()
    (run / "figures" / ".loss.png.999999999.1.tmp").touch()
    composed = compose_tiny(tiny_data, *EXPORT)
    with mock.patch("cram_composer.train.complete.write_report", side_effect=ValueError("no font")):
        assert start(composed, run) == 1
    assert record(run)["missing"] == {"report": "ValueError: no font"} and record(run)["status"] == "finished"
    assert start(composed, run) == 0
    assert record(run) == record(whole)
    assert (run / "report.html").is_file() and not list((run / "figures").glob(".*"))


@pytest.mark.parametrize(
    ("sentence", "problem"),
    [
        ("ba ke lo", "has no \\[MASK\\]"),
        ("ba " * 600 + "[MASK]", "has its \\[MASK\\] at token [0-9]+, beyond the [0-9]+ tokens of the model"),
    ],
)
def test_sentence_that_cannot_be_filled_in_is_found_before_training(
    sentence: str, problem: str, runs: TinyRuns, tiny_data: Path, tmp_path: Path
) -> None:
    composed = compose_tiny(tiny_data, "export.enabled=true", f"export.sentences=['{sentence}']")
    with pytest.raises(CramError, match=f"export.sentences: '{sentence.strip()[:5]}.*{problem}"):
        runs.continue_run(tmp_path / "run", composed)
    assert not (tmp_path / "run" / "record.json").exists()
