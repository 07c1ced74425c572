"""A finished run is trained further by a new run from its weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cram_composer.errors import CramError
from cram_composer.runs.extend import create_extension
from cram_composer.train.launch import check_same
from tests.tiny_runs import TinyRuns, compose_tiny, losses, record

OVERRIDES = ["schedule={name: linear, warmup: 0.0}", "algorithms.batch_size_ramp.until=0.9"]


@pytest.fixture(scope="module")
def first(tiny_run: TinyRuns) -> Path:
    return tiny_run("extended-from", *OVERRIDES)


def test_an_extension_starts_from_the_weights_and_warms_up_again(tiny_run: TinyRuns, first: Path):
    made = create_extension(first, "{steps: 100}", name="longer")
    config = made.composed.config
    assert made.yaml == first.with_name("longer") / "extend.yaml" and made.yaml.is_file()
    assert {name: limit for name, limit in config.budget if limit is not None} == {"steps": 100}
    assert config.algorithms.batch_size_ramp is None and config.seed == record(first)["config"]["seed"] + 1
    tiny_run.continue_run(made.path, made.composed)
    found = record(made.path)
    assert found["status"] == "finished" and found["steps"] == 100
    assert found["init_from"]["run_name"] == first.name and found["init_from"]["steps"] == 10
    rates = [json.loads(line)["lr"] for line in (made.path / "trace.jsonl").open()]
    assert rates[0] == 0.0 and max(rates) == rates[2] and rates[-1] < 0.02 * rates[2]
    assert losses(made.path)[0] < losses(first)[0]
    with pytest.raises(CramError, match=r"longer: already exists; continue it with .*extend\.yaml"):
        create_extension(first, "1h", name="longer")


def test_an_extension_is_refused_before_anything_is_written(first: Path, tmp_path: Path):
    before = sorted(first.parent.iterdir())
    for wrong in ("3x", "{stps: 3}", "null"):
        with pytest.raises(CramError, match=r"^--budget .*: ") as caught:
            create_extension(first, wrong, name="wrong")
        assert "\n" not in str(caught.value)
    running = tmp_path / "running"
    running.mkdir()
    (running / "record.json").write_text(json.dumps(record(first) | {"status": "interrupted"}))
    with pytest.raises(CramError, match=r"has not finished \(status interrupted\); resume it"):
        create_extension(running, "1h")
    assert sorted(first.parent.iterdir()) == before and len(list(tmp_path.iterdir())) == 1


def test_a_finished_run_with_another_budget_names_the_ways_to_go_further(first: Path):
    data = Path(record(first)["config"]["data"]["local"])
    larger = compose_tiny(data, *OVERRIDES, "budget={steps: 20}")
    with pytest.raises(CramError, match="has finished with another budget .budget.steps.; .*cram extend .*cram branch"):
        check_same(record(first), larger, str(first))
    with pytest.raises(CramError, match="holds a run with another configuration"):
        check_same(record(first), compose_tiny(data, *OVERRIDES, "budget={steps: 20}", "seed=3"), str(first))
