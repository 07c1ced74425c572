"""Recipes of optimizers, groups and schedules compose, set all keys they need, and change no others."""

from __future__ import annotations

import pytest

from cram_composer.budget.schedules import SCHEDULES, build_schedule
from cram_composer.config import compose
from cram_composer.config.compose import Composed
from cram_composer.config.layers import flatten
from cram_composer.config.recipes import load_recipe, recipe_names
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run
from cram_composer.errors import ConfigError
from cram_composer.optim import build_optimizer
from tests.optim.small import CONFIGS, small_model, stand_in_for_bitsandbytes

RECIPES = {name: load_recipe(name, "a test") for name in recipe_names()}
INGREDIENTS = {name: recipe for name, recipe in RECIPES.items() if recipe.card.kind == "ingredient"}
PRESETS = sorted(RECIPES.keys() - INGREDIENTS.keys())
OF_OPTIMIZERS = sorted(name for name, recipe in INGREDIENTS.items() if "name" in recipe.values.get("optimizer", {}))
OF_GROUPS = sorted(name for name, recipe in INGREDIENTS.items() if "groups" in recipe.values.get("optimizer", {}))
OF_SCHEDULES = sorted(name for name, recipe in INGREDIENTS.items() if "name" in recipe.values.get("schedule", {}))


def composed(*recipes: str) -> Composed:
    return compose(RunConfig, "yamls/cram-1gpu.yaml", [f"recipes=[{','.join(recipes)}]"])


def changed(name: str) -> set[str]:
    """Return the keys that a recipe changes relative to crammed-bert."""
    before, after = (flatten(composed(*names).plain) for names in (["crammed-bert"], ["crammed-bert", name]))
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} - {"recipes"}


def test_there_is_a_recipe_for_every_optimizer():
    chosen = [RECIPES[name].values["optimizer"]["name"] for name in OF_OPTIMIZERS]
    assert sorted(chosen) == sorted(CONFIGS.keys() - {"adamw"})


@pytest.mark.parametrize("name", [*OF_OPTIMIZERS, *OF_GROUPS])
def test_the_optimizer_is_built(name: str, monkeypatch: pytest.MonkeyPatch):
    config = composed("crammed-bert", name).config.optimizer
    if config.name == "adamw-8bit":
        stand_in_for_bitsandbytes(monkeypatch)
    optimizer = build_optimizer(config, small_model())
    assert max(group["lr"] for group in optimizer.param_groups) == config.lr * config.lr_scale


@pytest.mark.parametrize("preset", PRESETS)
def test_every_recipe_combines_with_every_preset(preset: str):
    for name in (*OF_OPTIMIZERS, *OF_GROUPS, *OF_SCHEDULES):
        result = composed(preset, name)
        if result.config.objective.name == "rtd" and name in RECIPES["rtd"].card.conflicts:
            with pytest.raises(ConfigError, match="excludes objective.name=rtd"):
                check_run(result.config, world_size=1)
            continue
        check_run(result.config, world_size=1)
        schedule = build_schedule(result.config.schedule)
        assert max(schedule(p / 800) for p in range(801)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", OF_OPTIMIZERS)
def test_a_recipe_states_its_rate_relative_to_adamws(name: str):
    """The run tunes `lr`; a recipe sets the rate of its optimizer relative to AdamW's."""
    values = RECIPES[name].values["optimizer"]
    assert "lr" not in values
    assert values["lr_scale"] == CONFIGS[values["name"]]().lr_scale
    tuned = compose(RunConfig, "yamls/cram-cpu.yaml", [f"recipes=[crammed-bert,{name}]"]).config.optimizer
    assert tuned.lr == 2e-3


@pytest.mark.parametrize("name", OF_OPTIMIZERS)
def test_recipe_changes_only_the_optimizer(name: str):
    sections = {key.partition(".")[0] for key in changed(name)}
    assert sections == ({"optimizer", "schedule"} if name == "schedule-free" else {"optimizer"})


def test_layerwise_decay_changes_one_key():
    assert changed("layerwise-lr-decay") == {"optimizer.groups.layer_lr_decay"}


@pytest.mark.parametrize("name", OF_SCHEDULES)
def test_a_schedule_changes_nothing_else(name: str):
    if name != "schedule-free":
        assert {key.partition(".")[0] for key in changed(name)} == {"schedule"}


def test_there_is_a_recipe_for_every_schedule():
    chosen = {RECIPES[name].values["schedule"]["name"] for name in OF_SCHEDULES}
    assert chosen == set(SCHEDULES)


def test_schedules_differ_from_each_other_and_from_crammed_berts():
    names = [name for name in OF_SCHEDULES if name != "schedule-free"]
    runs = [composed("crammed-bert"), *(composed("crammed-bert", name) for name in names)]
    curves = {tuple(round(build_schedule(run.config.schedule)(p / 50), 6) for p in range(51)) for run in runs}
    assert len(curves) == len(names) + 1


@pytest.mark.parametrize("pair", ["lion,muon", "schedule-wsd,schedule-free", "schedule-free,ema", "lawa,schedule-free"])
def test_conflicting_recipes(pair: str):
    with pytest.raises(ConfigError, match="exclude each other"):
        composed("crammed-bert", pair)
