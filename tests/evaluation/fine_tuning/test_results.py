"""Results survive kills and count once; medians and averages equal their definitions."""

from __future__ import annotations

from pathlib import Path

import pytest

from cram_composer.config.schema.evaluation import ProtocolConfig
from cram_composer.errors import CramError
from cram_composer.evaluation.fine_tuning.results import Result, append_result, averages, read_results, settings_hash
from cram_composer.evaluation.tasks.glue import GLUE


def result(task: str, seed: int = 1, value: float = 50.0, **scores: float) -> Result:
    """Return a result in which every metric is `value` unless it is in `scores`."""
    found = GLUE[task]
    by_split = {split: {metric: scores.get(metric, value) for metric in found.metrics} for split in found.scored}
    if "mismatched" in scores:
        by_split["validation_mismatched"]["accuracy"] = scores["mismatched"]
    return Result(
        "m", "h", "s", "glue", task, seed, by_split, {"train": 4}, [], False, 10, 1.0, 40.0, 0.5, "cpu", "fp32"
    )


def test_results_are_read_as_written_and_the_last_duplicate_counts(tmp_path: Path):
    path = tmp_path / "deep" / "results.jsonl"
    assert read_results(path) == []
    for one in (result("rte", 1), result("rte", 2), result("rte", 1, value=60.0)):
        append_result(path, one)
    assert read_results(path) == [result("rte", 1, value=60.0), result("rte", 2)]


def test_a_torn_line_loses_only_itself(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    append_result(path, result("rte", 1))
    append_result(path, result("rte", 2))
    path.write_bytes(path.read_bytes()[:-20])
    assert read_results(path) == [result("rte", 1)]
    append_result(path, result("rte", 3))
    assert read_results(path) == [result("rte", 1), result("rte", 3)]


def test_invalid_result_is_one_line(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"model": "m"}\n')
    with pytest.raises(CramError, match=r"results.jsonl:1: not a result of this version"):
        read_results(path)


def means(results: list[Result], protocol: ProtocolConfig | None = None) -> tuple[float | None, float | None]:
    found = averages(results, protocol or ProtocolConfig())
    return found["nine-number mean"]["mean"], found["eight-task mean"]["mean"]


def test_the_median_over_seeds_counts():
    seeds = [result("mrpc", seed, f1=f1, accuracy=70.0) for seed, f1 in ((1, 10.0), (2, 80.0), (3, 82.0))]
    assert means(seeds) == (80.0, 75.0)


def test_both_averages_of_glue():
    results = [result(task) for task in GLUE if task not in ("mnli", "mrpc")]
    results += [result("mnli", value=80.0, mismatched=82.0), result("mrpc", f1=60.0, accuracy=40.0)]
    nine, eight = means(results)
    assert nine == pytest.approx((6 * 50.0 + 80.0 + 82.0 + 60.0) / 9)
    assert eight == pytest.approx((6 * 50.0 + 81.0 + 50.0) / 8)
    assert means(results, ProtocolConfig(not_averaged=[]))[1] == pytest.approx((7 * 50.0 + 81.0 + 50.0) / 9)


def test_missing_tasks_are_named():
    found = averages([result("rte", value=60.0), result("wnli", value=0.0)], ProtocolConfig())
    assert found["nine-number mean"] == {
        "mean": 60.0,
        "missing": ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli"],
    }
    assert means([]) == (None, None)


def test_settings_hash_covers_what_affects_a_score():
    def of(rows: str = "a", precision: str = "fp32", **changes) -> str:
        return settings_hash(ProtocolConfig(**changes), {"train": rows}, precision)

    assert of() == of(seeds=3) == of(tasks=["rte"]) == of(name="other")
    assert len({of(), of(lr=1e-5), of(rows="b"), of(precision="bf16"), of(mnli_start=True)}) == 5
