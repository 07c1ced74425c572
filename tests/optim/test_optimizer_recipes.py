"""Recipes of optimizers, groups and schedules: each composes, says all that its choice reads, and changes no more."""

from __future__ import annotations

from dataclasses import fields

import pytest

from cram_composer.budget.schedules import SCHEDULES, build_schedule
from cram_composer.config import compose
from cram_composer.config.compose import Composed
from cram_composer.config.recipes import leaves, load_recipe, recipe_names
from cram_composer.config.schema.optimizer import OPTIMIZER_DEFAULTS, OptimizerConfig, ScheduleConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError
from cram_composer.optim import build_optimizer
from tests.optim.small import small_model, stand_in_for_bitsandbytes

RECIPES = {name: load_recipe(name, "a test") for name in recipe_names()}
INGREDIENTS = {name: recipe for name, recipe in RECIPES.items() if recipe.card.kind == "ingredient"}
PRESETS = sorted(RECIPES.keys() - INGREDIENTS.keys())
OF_OPTIMIZERS = sorted(name for name, recipe in INGREDIENTS.items() if "name" in recipe.values.get("optimizer", {}))
OF_GROUPS = sorted(name for name, recipe in INGREDIENTS.items() if "groups" in recipe.values.get("optimizer", {}))
OF_SCHEDULES = sorted(name for name, recipe in INGREDIENTS.items() if "name" in recipe.values.get("schedule", {}))


def composed(*recipes: str) -> Composed:
    return compose(RunConfig, "yamls/cram-1gpu.yaml", [f"recipes=[{','.join(recipes)}]"])


def changed(name: str) -> set[str]:
    """Keys whose values a recipe changes on crammed-bert."""
    before, after = (leaves(composed(*names).plain) for names in (["crammed-bert"], ["crammed-bert", name]))
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} - {"recipes"}


def test_there_is_a_recipe_for_every_optimizer():
    chosen = [RECIPES[name].values["optimizer"]["name"] for name in OF_OPTIMIZERS]
    assert sorted(chosen) == sorted(OPTIMIZER_DEFAULTS.keys() - {"adamw"})


@pytest.mark.parametrize("name", [*OF_OPTIMIZERS, *OF_GROUPS])
def test_the_optimizer_is_built(name: str, monkeypatch: pytest.MonkeyPatch):
    config = composed("crammed-bert", name).config.optimizer
    if config.name == "adamw-8bit":
        stand_in_for_bitsandbytes(monkeypatch)
    optimizer = build_optimizer(config, small_model())
    assert max(group["lr"] for group in optimizer.param_groups) == config.lr


@pytest.mark.parametrize("preset", PRESETS)
def test_every_recipe_goes_with_every_preset(preset: str):
    for name in (*OF_OPTIMIZERS, *OF_GROUPS, *OF_SCHEDULES):
        result = composed(preset, name)
        check_run(result.config, world_size=1)
        schedule = build_schedule(result.config.schedule)
        assert max(schedule(p / 100) for p in range(101)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", OF_OPTIMIZERS)
def test_it_leaves_nothing_to_a_preset(name: str):
    """Every key of the section is set, to null where the optimizer does not read it."""
    values = RECIPES[name].values["optimizer"]
    reads = OPTIMIZER_DEFAULTS[values["name"]].keys() | {"name", "lr"}
    shared = {"groups", "mup_base_width"} if "mup_base_width" in reads else {"groups"}
    assert values.keys() | shared == {field.name for field in fields(OptimizerConfig)}
    assert all(value is None for key, value in values.items() if key not in reads)
    assert all(values[key] is not None for key in reads - {"mup_base_width", "matrix_lr"})


@pytest.mark.parametrize("name", OF_OPTIMIZERS)
def test_it_changes_the_optimizer_and_nothing_else(name: str):
    sections = {key.partition(".")[0] for key in changed(name)}
    assert sections == ({"optimizer", "schedule"} if name == "schedule-free" else {"optimizer"})


def test_layerwise_decay_changes_one_key():
    assert changed("layerwise-lr-decay") == {"optimizer.groups.layer_lr_decay"}


@pytest.mark.parametrize("name", OF_SCHEDULES)
def test_a_schedule_says_all_that_it_reads_and_changes_nothing_else(name: str):
    values = RECIPES[name].values["schedule"]
    assert values.keys() == {field.name for field in fields(ScheduleConfig)}
    reads = set(SCHEDULES[values["name"]].__kwdefaults__ or {}) | {"name"}
    assert {key for key, value in values.items() if value is not None} == reads
    if name != "schedule-free":
        assert {key.partition(".")[0] for key in changed(name)} == {"schedule"}


def test_schedules_differ_from_each_other_and_from_crammed_berts():
    names = [name for name in OF_SCHEDULES if name != "schedule-free"]
    runs = [composed("crammed-bert"), *(composed("crammed-bert", name) for name in names)]
    curves = {tuple(round(build_schedule(run.config.schedule)(p / 50), 6) for p in range(51)) for run in runs}
    assert len(curves) == len(names) + 1


@pytest.mark.parametrize("pair", ["lion,muon", "schedule-wsd,schedule-free", "schedule-free,ema", "lawa,schedule-free"])
def test_what_excludes_each_other(pair: str):
    with pytest.raises(ConfigError, match="exclude each other"):
        composed("crammed-bert", pair)


def test_a_forgotten_key_of_a_preset_is_one_line():
    result = compose(RunConfig, "yamls/cram-1gpu.yaml", ["optimizer.name=lion"])
    with pytest.raises(ConfigError, match=r"optimizer\.eps: the optimizer 'lion' has no 'eps'"):
        check_run(result.config, world_size=1)
