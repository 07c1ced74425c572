"""Contents of the report: recorded numbers, and missing values marked as such."""

from __future__ import annotations

from cram_composer.analysis.html.tables import Tile
from cram_composer.analysis.report import page
from cram_composer.analysis.report.data_set import data_set_tables
from cram_composer.analysis.runs.run import load_run


def tiles(run) -> dict[str, Tile]:
    return {tile.label: tile for tile in page.headline(run)}


def test_the_headline_compares_with_the_unigram_model(make_run) -> None:
    shown = tiles(load_run(make_run()))
    assert shown["Held-out loss"].value == "4.214 nats/token"
    assert shown["Held-out loss"].note == "unigram baseline 6.914: 2.700 better"
    assert shown["Held-out accuracy"].value == "31.3 %"
    assert shown["Parameters"].value == "12.35 M"
    assert shown["Energy"].value == "not measured"
    assert shown["Budget used"].note.startswith("of 10 min: 100.")


def test_a_loss_above_the_unigram_model_is_worse(make_run) -> None:
    shown = tiles(load_run(make_run(metrics={"validation_loss": 7.0, "validation_accuracy": 0.01})))
    assert shown["Held-out loss"].note == "unigram baseline 6.914: 0.086 worse"


def test_energy_is_shown_in_watt_hours_with_its_source(make_run) -> None:
    shown = tiles(load_run(make_run(energy={"joules": 1_800_000, "source": "NVML"})))
    assert (shown["Energy"].value, shown["Energy"].note) == ("500.0 Wh", "NVML")


def test_budgets_without_a_clock_name_their_limits(make_run) -> None:
    run = load_run(make_run())
    run.record["budget"] = {"mode": "count", "seconds": None, "tokens": 2_000_000, "steps": 500}
    assert tiles(run)["Budget used"].note == "limit: 2 M tokens, 500 steps"
    run.record["budget"] = {"mode": "replay", "seconds": None, "tokens": None, "steps": 80}
    assert tiles(run)["Budget used"].note == "replay of 80 recorded steps, no clock"


def test_the_ledger_sums_up_and_is_compared_with_the_wall_clock(make_run) -> None:
    run = load_run(make_run())
    inside, outside = page.ledger_tables(run)
    assert [row[0] for row in inside.rows[-2:]] == ["sum", "wall-clock"]
    items = [float(row[2].replace(",", "")) for row in inside.rows[:-2]]
    assert abs(sum(items) - run.get("ledger.inside_total")) < 0.05
    assert inside.rows[-1][3] == "100.03 %"
    assert ("data build", "88.40") in [(row[0], row[2]) for row in outside.rows]


def test_data_and_environment_tables(make_run) -> None:
    run = load_run(make_run())
    facts, splits, sources = data_set_tables(run.get("data"))
    assert ("vocab size", "32768") in facts.rows
    assert ("tokens", "6,553,600", "65,536") in splits.rows
    assert ("unknown tokens", "0.002 %", "0.000 %") in splits.rows
    assert sources.rows[1] == ("leads", "hub, revision c0ffee", "24,070", "19,000,000", "not recorded")
    machine, kernels, libraries = page.environment_tables(run)
    assert ("gpus", "none") in machine.rows
    assert ("compile", "regional") in kernels.rows
    assert ("torch", "2.7.0") in libraries.rows


def test_notes_warn_of_a_run_that_is_not_a_plain_finished_one(make_run) -> None:
    assert page.notes(load_run(make_run())) == []
    (disturbed,) = page.notes(load_run(make_run(others_cpu_share=0.34)))
    assert disturbed.startswith("Other processes took 34.0 % of the CPU time")
    (running,) = page.notes(load_run(make_run(running=True)))
    assert "39.9 %" in running
    (further,) = page.notes(load_run(make_run(init_from={"path": "runs/earlier"})))
    assert further.startswith("Not from scratch: the run starts from the weights of runs/earlier")
    stopped = page.notes(load_run(make_run(status="stopped-early", reason="loss 8.1 above 7.5", steps_skipped=3)))
    assert stopped == [
        "Reason for the end: loss 8.1 above 7.5.",
        "3 steps with a non-finite loss or gradient were skipped.",
    ]
