from __future__ import annotations

import json
from pathlib import Path

import pytest

from cram_composer.cli import main
from cram_composer.config import compose
from cram_composer.config.schema.run import RunConfig
from cram_composer.planning.cards import CARDS
from cram_composer.planning.memory import measure_step_memory
from cram_composer.planning.microbatch import with_microbatch
from cram_composer.planning.plan import make_plan
from cram_composer.planning.run_spec import RunSpec
from tests.conftest import SMALL, Train
from tests.data.data_sets import write_data_set
from tests.tiny_runs import record

RUN = ["plan", "yamls/cram-cpu.yaml"]


def test_a_plan_from_given_flops(tmp_path: Path, capsys):
    settings = [*SMALL, f"data.local={write_data_set(tmp_path / 'data')}", "algorithms.batch_size_ramp=null"]
    speed = ["--mfu", "0.4", "--peak", "1e9"]
    given = ["--devices", "2", "--budget", "{device_hours: 0.5}", *speed, "--memory", "1mb"]
    assert main([*RUN, *given, *settings]) == 0
    printed = capsys.readouterr().out
    assert main([*RUN, *given, *settings, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["spending"]["seconds"] == pytest.approx(900.0, rel=1e-3)
    assert found["device_hours"] == pytest.approx(0.5, rel=1e-3)
    assert found["model_flops"] == pytest.approx(4e8)
    assert found["spending"]["tokens"] == pytest.approx(900 * 2 * 4e8 / found["flops_per_token"], rel=1e-3)
    assert "40.0 % of the peak" in printed and "2 devices are 2 times as fast as one" in printed
    (ddp,) = [line for line in printed.splitlines() if line.startswith("ddp ")]
    entry = found["estimates"][0]
    assert ddp.endswith(f"fits with device_train_microbatch_size={entry['largest_microbatch']}")
    assert 16 % entry["largest_microbatch"] == 0 and entry["total"] > 0.9 * 2**20


def test_prices_tell_what_the_run_costs_on_a_card(tmp_path: Path, capsys, monkeypatch):
    for name in set(CARDS) - {"4090", "a6000"}:
        monkeypatch.delitem(CARDS, name)
    settings = [*SMALL, f"data.local={write_data_set(tmp_path / 'data')}", "--budget", "30m", "--devices", "2"]
    assert main([*RUN, *settings, "--card", "all", "--price", "a6000=0.50"]) == 0
    header, *cards = capsys.readouterr().out.splitlines()
    assert header.split()[-5:] == ["hour", "cost", "tokens", "per", "unit"]
    (priced,) = [line.split() for line in cards if line.startswith("a6000")]
    assert priced[-4:-2] == ["0.50", "0.50"]  # half an hour on two cards
    (other,) = [line for line in cards if line.startswith("4090")]
    assert "0.50" not in other


def test_an_automatic_microbatch_is_planned_with_its_own_memory(tmp_path: Path):
    settings = [*SMALL, f"data.local={write_data_set(tmp_path / 'data')}", "train.device_train_microbatch_size=auto"]
    config = compose(RunConfig, "yamls/cram-cpu.yaml", settings).config
    plan = make_plan(config, 1, card=CARDS["2080ti"])
    spec = RunSpec(with_microbatch(config, plan.microbatch), plan.facts, 1)
    assert plan.microbatch == 32
    expected = measure_step_memory(spec, plan.precision).activations(plan.microbatch)
    assert plan.estimates[0].activations == pytest.approx(expected, rel=0.01)


def test_calibration_trains_here_and_writes_nothing(tmp_path: Path, capsys):
    data = write_data_set(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    settings = [*SMALL, f"data.local={data}", "train.threads=1", f"runs_dir={tmp_path}", "recipes=[crammed-bert,ema]"]
    assert main([*RUN, *settings, "--calibrate", "2", "--budget", "1h"]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "4 timed steps on this machine's cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given, message",
    [
        (["--devices", "3", "--flops", "1e9"], "must be a whole number of microbatches"),
        (["--flops", "-1"], "--flops -1.0: must be > 0"),
        (["--mfu", "0.4"], "--mfu and --peak"),
        (["--mfu", "40", "--peak", "1e9"], "--mfu 40.0: must be <= 1, a share"),
        (["--flops", "1e9", "--calibrate", "3"], "--flops and --calibrate"),
        (["--memory", "much"], "--memory: 'much' is not a size"),
        (["--budget", "soon"], "'soon' is not a duration"),
        (["--price", "a6000=0.5"], "--price: has no effect without --card all"),
        (["--card", "all", "--memory", "24gb"], "--memory: has no effect with --card all"),
        (["--card", "all", "--price", "a60=0.5"], "--price a60=0.5: must be one of"),
        (["--card", "all", "--price", "a6000=free"], "--price a6000=free: must be an amount > 0, such as a6000=0.5"),
        (["--card", "all", "--price", "a6000"], "--price a6000: must be an amount > 0"),
    ],
)
def test_mistakes_are_one_line(given, message, capsys):
    assert main([*RUN, *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_override_may_follow_an_option_and_an_unknown_option_may_not(capsys):
    assert main([*RUN, "--devices", "1", "budget=soon"]) == 2
    with pytest.raises(SystemExit):
        main([*RUN, "--device", "1", "--sped", "2", "budget=1h"])
    assert "unknown option '--sped'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_plan_is_about_right(train: Train, tiny_data: Path, tmp_path: Path, capsys):
    """Within a factor of two, because other processes may use this machine."""
    settings = ["budget=20s", "run_name=r", "train.threads=1", "model.hidden_size=128", "data.num_workers=0"]
    assert main([*RUN, *SMALL, f"data.local={tiny_data}", *settings, "--json"]) == 0
    assert train(*settings).returncode == 0
    planned, taken = json.loads(capsys.readouterr().out)["spending"], record(tmp_path / "r")
    assert 0.5 < planned["steps"] / taken["steps"] < 2.0
    assert planned["epochs"] == pytest.approx(planned["steps"] / taken["steps"] * taken["epochs"], rel=0.1)
