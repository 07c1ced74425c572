"""Steps under torch's profiler after the end of a run."""

from __future__ import annotations

import json

import torch

from tests.tiny_runs import TinyRuns, record, saved


def test_profiled_steps_change_no_result(tiny_run: TinyRuns) -> None:
    plain, profiled = tiny_run("plain"), tiny_run("profiled", "train.profile=2")
    events = json.loads((profiled / "profile" / "trace.json").read_text())["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert any("aten::" in name for name in names)
    assert sum(name.startswith("Optimizer.step") for name in names) >= 2
    assert "Self CPU" in (profiled / "profile" / "summary.txt").read_text()
    assert record(profiled)["status"] == "finished" and record(profiled)["steps"] == record(plain)["steps"]
    assert len((profiled / "trace.jsonl").read_text().splitlines()) == record(plain)["steps"]
    one, other = saved(plain)["model"], saved(profiled)["model"]
    assert all(torch.equal(one[name], other[name]) for name in one)
