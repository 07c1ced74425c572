"""Runs whose masks change at `objective.switch` or by the model's predictions: exact resuming, trace and branches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cram_composer.errors import ConfigError
from tests.tiny_runs import TinyRuns, compose_tiny, losses, record

PHASES = {
    "causal-first": ["recipes=[crammed-bert,rope,causal-first]", "objective.switch=0.5"],
    "all at once": [
        "recipes=[crammed-bert,rope,mask-step,all-mask-late]",
        "objective={min_mlm_probability: 0.1, shift: true, causal_fraction: 1.0, final_causal_fraction: 0.25}",
        "objective.causal_labels=all",
    ],
    "adaptive": ["recipes=[crammed-bert,rope,adaptive-masking]", "objective.adapt_every=2"],
}


@pytest.mark.parametrize("killed_at", [3, 7], ids=["before", "after"])
@pytest.mark.parametrize("name", PHASES)
def test_a_run_of_ten_steps_resumes_exactly(name: str, killed_at: int, tiny_run: TinyRuns) -> None:
    whole = tiny_run(f"{name.replace(' ', '-')}-{killed_at}", *PHASES[name])
    killed = tiny_run.resume(whole, killed_at, *PHASES[name])
    assert losses(killed) == losses(whole)
    assert record(killed)["metrics"] == record(whole)["metrics"]


def test_the_trace_has_the_rate_of_each_phase(tiny_run: TinyRuns) -> None:
    run = tiny_run("rates", "recipes=[crammed-bert,rope,mask-step]", "objective.switch=0.75")
    steps = [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]
    assert {step["mlm_probability"] for step in steps if step["progress"] < 0.75} == {0.4}
    assert {step["mlm_probability"] for step in steps if step["progress"] >= 0.75} == {0.2}


@pytest.mark.parametrize("setting", ["final_masking: all-mask", "shift: true, final_causal_fraction: 0.5"])
def test_a_branch_would_jump(setting: str, tiny_data: Path) -> None:
    constant = ["recipes=[crammed-bert,rope,schedule-constant]", "checkpoint.branch_at=[0.5]"]
    with pytest.raises(ConfigError, match=r"objective\.final_.*: .* is scheduled by budget fraction"):
        compose_tiny(tiny_data, *constant, "algorithms.batch_size_ramp=null", f"objective={{{setting}}}")
