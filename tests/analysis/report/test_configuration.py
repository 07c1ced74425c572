from __future__ import annotations

from cram_composer.analysis.report.configuration import configuration_tables, differences_table
from cram_composer.analysis.runs.run import load_run
from cram_composer.config.layers import flatten


def test_configuration_shows_every_key_and_what_was_set_first(make_run) -> None:
    run = load_run(make_run())
    chosen, defaults = configuration_tables(run)
    keys = flatten(run.get("config"))
    assert sorted(row[0] for row in [*chosen.rows, *defaults.rows]) == sorted(keys)
    assert chosen.rows[0] == ("budget", "600s", "command line")
    assert {row[2] for row in defaults.rows} == {"default"}
    origins = {row[0]: row[2] for row in chosen.rows}
    assert origins["optimizer.betas"] == "recipe crammed-bert"  # set with its parent
    assert origins["algorithms.ema"] == "not recorded"  # never guessed to be a default


def test_differences_are_the_keys_that_differ() -> None:
    one, other = ({"seed": 17, "optimizer.lr": 1e-3, "name": "a"} for _ in range(2))
    assert differences_table("", ["1", "2"], [one, other]).rows == []
    other["optimizer.lr"] = 2e-3
    del other["seed"]
    assert differences_table("", ["1", "2"], [one, other]).rows == [
        ("seed", "17", "—"),
        ("optimizer.lr", "0.001", "0.002"),
    ]
