"""Planning of a sweep: its runs, before any is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cram_composer.config import compose
from cram_composer.config.paths import shared_dir
from cram_composer.config.recipes import Recipe, load_recipe
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.errors import ConfigError
from cram_composer.sweeps.ablation import leave_one_out
from cram_composer.sweeps.plan import Trial, duplicate_variants, plan_trials

SHIPPED = sorted((shared_dir() / "yamls" / "sweeps").glob("*.yaml"))


def plan(tmp_path: Path, text: str, *overrides: str) -> list[Trial]:
    path = tmp_path / "own.yaml"
    path.write_text(f"run: yamls/cram-cpu.yaml\n{text}")
    return plan_trials(compose(SweepConfig, path, list(overrides)).config, "own.yaml", tmp_path / "runs")


@pytest.mark.parametrize("path", SHIPPED, ids=[path.stem for path in SHIPPED])
def test_shipped_sweeps_can_be_planned_and_every_variant_differs(path: Path, tmp_path: Path) -> None:
    config = compose(SweepConfig, path, []).config
    trials = plan_trials(config, path.name, tmp_path)
    assert len(trials) == config.seeds * len({trial.variant for trial in trials}) > config.seeds
    assert config.name == path.stem
    assert duplicate_variants(trials) == []
    assert all(trial.seconds for trial in trials)


def test_variants_are_trained_at_every_point_of_the_grid_seed_by_seed(tmp_path: Path) -> None:
    trials = plan(
        tmp_path,
        "seeds: 2\nbudget: 3m\nset: {eval.rows: 64}\n"
        "variants: {plain: {}, soft: {add: [muon], set: {train.threads: 1}}}\n"
        "grid: {optimizer.lr: [1.0e-3, 2.0e-3], train.max_nonfinite: [9]}",
    )
    assert [(t.variant, t.seed) for t in trials[:4]] == [
        ("plain lr=0.001 max_nonfinite=9", 1),
        ("plain lr=0.002 max_nonfinite=9", 1),
        ("soft lr=0.001 max_nonfinite=9", 1),
        ("soft lr=0.002 max_nonfinite=9", 1),
    ]
    assert [t.composed.config.seed for t in trials] == [1] * 4 + [2] * 4
    soft = trials[3].composed.config
    assert (soft.optimizer.lr, soft.optimizer.name, soft.train.threads) == (0.002, "muon", 1)
    assert soft.recipes == ["crammed-bert", "muon"] and soft.eval.rows == 64 and soft.budget.wall == "3m"
    assert trials[3].path == tmp_path / "runs" / "soft-lr-0.002-max_nonfinite-9-seed1"
    assert trials[3].log.name == "soft-lr-0.002-max_nonfinite-9-seed1.log"
    assert trials[3].seconds == 180.0


def test_a_budget_of_a_variant_wins_and_tokens_have_no_seconds(tmp_path: Path) -> None:
    trials = plan(
        tmp_path,
        "seeds: 1\nvariants: {a: {}, b: {set: {budget: 5m}}, c: {set: {budget: {wall: null, steps: 9}}}}",
        "budget=1m",
    )
    assert [t.seconds for t in trials] == [60.0, 300.0, None]


def test_a_budget_of_the_sweep_replaces_the_runs(tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, "seeds: 1\nvariants: {a: {}}", "budget={tokens: 1e9}")
    assert (trial.composed.config.budget.wall, trial.composed.config.budget.tokens) == (None, 1e9)


def test_a_recipe_that_is_added_may_be_adjusted(tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, "seeds: 1\nvariants: {a: {add: [muon], set: {optimizer.momentum: 0.9}}}")
    assert (trial.composed.config.optimizer.name, trial.composed.config.optimizer.momentum) == ("muon", 0.9)


def test_copies_go_where_those_of_no_other_sweep_are(tmp_path: Path) -> None:
    (trial,) = plan(tmp_path, "name: lr\nseeds: 1\nset: {runs_remote: 's3://bucket/runs'}\nvariants: {a: {}}")
    assert trial.composed.config.runs_remote == "s3://bucket/runs/lr"


def test_leave_one_out_keeps_the_preset() -> None:
    sweep = leave_one_out("yamls/cram-cpu.yaml", ["recipes=[crammed-bert,muon,relu2]", "budget=3m"])
    without = {name: variant.without for name, variant in sweep.variants.items()}
    assert without == {"all": [], "without muon": ["muon"], "without relu2": ["relu2"]}
    trials = plan_trials(sweep, "ablate", Path("runs"))
    assert trials[1].composed.config.recipes == ["crammed-bert", "relu2"]
    assert trials[1].composed.config.budget.wall == "3m" and trials[1].composed.config.optimizer.name == "adamw"
    few = leave_one_out("yamls/cram-cpu.yaml", ["recipes=[+muon,+relu2]"], ["relu2"])
    assert plan_trials(few, "ablate", Path("runs"))[1].composed.config.recipes == ["crammed-bert", "muon"]
    assert list(few.variants) == ["all", "without relu2"]


def test_what_needs_a_recipe_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def needing(name: str, asked_by: str) -> Recipe:
        recipe = load_recipe(name, asked_by)
        return replace(recipe, card=recipe.card.model_copy(update={"needs": ["muon"]})) if name == "relu2" else recipe

    monkeypatch.setattr("cram_composer.sweeps.ablation.load_recipe", needing)
    sweep = leave_one_out("yamls/cram-cpu.yaml", ["recipes=[crammed-bert,muon,relu2]"])
    assert sweep.variants["without muon and relu2"].without == ["muon", "relu2"]


def test_what_the_file_sets_too_cannot_be_left_out_and_is_said() -> None:
    sweep = leave_one_out("yamls/cram-cpu.yaml", ["recipes=[crammed-bert,muon,rope]"])
    (line,) = duplicate_variants(plan_trials(sweep, "ablate", Path("runs")))
    assert line.startswith("without rope: has the same settings as all, because its changes are set elsewhere")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "own.yaml: nothing to train; list 'variants', a 'grid'"),
        ("variants: {a: {}}\nbaseline: b", "own.yaml: baseline: must be one of a, got 'b'"),
        ("grid: {optimizer.lr: []}", "grid.optimizer.lr: must not be empty"),
        ("variants: {a: {}, b: {add: [muonn]}}", "variant 'b': recipes: no recipe 'muonn'"),
        (
            "variants: {a: {without: [ema]}}",
            "'a': without: 'ema' is not a recipe of the run, which has crammed-bert",
        ),
        ("variants: {a: {set: {optimizer.rate: 1}}}", "variant 'a': optimizer.rate: unknown key for 'adamw'"),
        ("variants: {a: {set: {schedule.power: 2}}}", "variant 'a': "),
        ("variants: {a: {set: {optimizer.lr: 1}}}\ngrid: {optimizer.lr: [1, 2]}", "is also in grid"),
        ("grid: {optimizer.lr: [1.0e-3, 0.001]}", "grid: variant 'lr=0.001' occurs twice"),
        ("variants: {a: {set: {seed: 4}}}", "a sets seed, which the sweep sets itself"),
        ("variants: {a b: {}, a-b: {}}", "two names give the same folder name"),
        ("variants: {a: {sett: {}}}", "variants.a.sett: unknown key; did you mean 'set'?"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, text)
    assert says in str(caught.value) and "\n" not in str(caught.value)
