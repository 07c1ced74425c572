from __future__ import annotations

from pathlib import Path

import pytest

from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.data.loading.open_dataset import open_train
from cram_composer.data.loading.prepare import prepare_dataset
from cram_composer.errors import CramError
from cram_composer.models.flops import flops_per_token
from cram_composer.planning.run_spec import RunSpec, read_data_facts
from cram_composer.planning.speed import Speed, row_flops, speed_from_flops
from cram_composer.planning.spending import simulate_budget
from tests.conftest import REPOSITORY, SMALL
from tests.data.data_sets import write_data_set

LENGTH = 16
PLAIN = ["algorithms={batch_size_ramp: null}"]
SPEED = Speed(microbatch_seconds=0.5, step_seconds=1.0, compile_seconds=0.0, source="by hand")


def spec(data: Path, devices: int, *overrides: str) -> RunSpec:
    settings = [*SMALL, f"data.local={data}", *overrides]
    config = compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", settings).config
    return RunSpec(config, read_data_facts(config.data), devices)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("spending") / "data", rows={"train-a": 96, "train-b": 32})


def same(length: int) -> float:
    return length / LENGTH


def test_tokens_from_flops(data: Path):
    plan = spec(data, 2, *PLAIN, "budget=100s", "train.batch_size=64")
    network = plan.build_model().model
    per_token = flops_per_token(network, LENGTH, 4)  # a quarter of the row is masked
    speed = speed_from_flops(plan, row_flops(plan, network, LENGTH), 1e6 * per_token, "given")
    # A million tokens a second on each of two devices, in steps of 64 rows: 1024 tokens.
    spent = simulate_budget(plan, speed, same)
    assert spent.tokens == pytest.approx(2e8, rel=1e-4) and spent.tokens == 1024 * spent.steps
    assert spent.epochs == pytest.approx(2e8 / (128 * LENGTH), rel=1e-4)


@pytest.mark.parametrize(
    "budget, devices, steps, seconds",
    [
        ("budget=1m", 1, 30, 60.0),  # two microbatches and a second: 2 s
        ("budget={device_hours: 0.05}", 3, 40, 60.0),  # one microbatch each: 1.5 s, in 180 / 3 s
        ("budget={wall: null, tokens: 5120}", 1, 10, 20.0),  # 512 tokens a step
        ("budget={wall: 1m, steps: 7}", 1, 7, 14.0),
        ("budget={epochs: 1.5}", 1, 6, 12.0),  # 192 of 128 rows
    ],
)
def test_budgets_by_hand(data: Path, budget: str, devices: int, steps: int, seconds: float):
    plan = spec(data, devices, *PLAIN, budget, f"train.batch_size={48 if devices == 3 else 32}")
    spent = simulate_budget(plan, SPEED, same)
    assert (spent.steps, spent.seconds) == (steps, pytest.approx(seconds))


def test_a_ramp_takes_more_and_smaller_steps(data: Path):
    """2,000 steps of a second each, with rows on the line from one to eight microbatches until 60 %."""
    speed = Speed(microbatch_seconds=0.0, step_seconds=1.0, compile_seconds=0.0, source="by hand")
    plan = spec(data, 1, "algorithms.batch_size_ramp.initial_batch_size=16", "budget=2000s", "train.batch_size=128")
    rows = sum(16 * round(1 + 7 * min(step / 1200, 1.0)) for step in range(2000))
    spent = simulate_budget(plan, speed, same)
    assert (spent.steps, spent.first_batch_size, spent.last_batch_size) == (2000, 16, 128)
    assert spent.tokens == pytest.approx(LENGTH * rows, rel=2e-3)


@pytest.mark.parametrize("truncate", [False, True])
def test_short_rows_first(data: Path, truncate: bool):
    """Half of the budget with rows of 8: reshaped rows take as long as full ones, truncated rows half as long."""
    warmup = f"{{duration: 0.5, min_seq_length: 8, step_size: 8, truncate: {truncate}}}"
    plan = spec(data, 1, *PLAIN, f"algorithms.seq_length_warmup={warmup}", "budget=1000s")
    speed = Speed(microbatch_seconds=0.5, step_seconds=0.0, compile_seconds=0.0, source="by hand")
    spent = simulate_budget(plan, speed, same)
    assert spent.tokens == pytest.approx(1000 * 512, rel=1e-2)
    assert spent.steps == pytest.approx(1500 if truncate else 1000, rel=1e-2)


def test_compilation_and_evaluations_come_out_of_the_budget(data: Path):
    speed = Speed(microbatch_seconds=0.5, step_seconds=1.0, compile_seconds=10.0, source="by hand")
    overrides = [*PLAIN, "budget=1m", "eval.interval=0.2", "eval.rows=96"]
    spent = simulate_budget(spec(data, 1, *overrides), speed, same)
    # Four evaluations of six microbatches, each a third of half a second: 4 s. 46 s remain for steps of 2 s.
    assert (spent.evaluation_seconds, spent.compile_seconds) == (pytest.approx(4.0), 10.0)
    assert spent.steps == pytest.approx(23, abs=1)
    with pytest.raises(CramError, match="take the whole budget of 13 s"):
        simulate_budget(spec(data, 1, *overrides, "budget=13s"), speed, same)


@pytest.mark.parametrize(
    "mixture",
    [
        "{}",
        "{a: {repeat: 2}}",
        "{a: {choose: 3}}",
        "{b: {repeat: 0}}",
        "{a: {proportion: 0.25}, b: {proportion: 0.75}}",
    ],
)
def test_rows_per_epoch_equal_those_of_the_stream(data: Path, mixture: str):
    config = spec(data, 1, f"data.mixture={mixture}").config
    opened = open_train(prepare_dataset(config.data, True, lambda: None), config.data, seed=0)
    assert read_data_facts(config.data).rows_per_epoch == opened.rows_per_epoch


def test_facts_of_an_unbuilt_data_set_come_from_its_build(tmp_path: Path):
    plan = spec(tmp_path / "nothing", 1, "data.build=yamls/data/fineweb-edu.yaml", *PLAIN, "budget=1m")
    facts = plan.facts
    assert (facts.sequence_length, facts.vocab_size, facts.rows_per_epoch) == (128, 32768, None)
    assert "fineweb-edu.yaml" in facts.source and simulate_budget(plan, SPEED, same).epochs is None
    plan = spec(tmp_path / "nothing", 1, "data.build=yamls/data/fineweb-edu.yaml", *PLAIN, "budget={epochs: 1}")
    with pytest.raises(CramError, match=r"budget\.epochs: the rows of the data are unknown .*add another limit"):
        simulate_budget(plan, SPEED, same)
    plan = spec(
        tmp_path / "nothing", 1, "data.build=yamls/data/fineweb-edu.yaml", *PLAIN, "budget={epochs: 1, steps: 3}"
    )
    assert simulate_budget(plan, SPEED, same).steps == 3
