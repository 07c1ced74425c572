"""Every recipe trains, every preset has its published size, and no two recipes override each other unnoticed."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from cram_composer.config import compose
from cram_composer.config.layers import flatten
from cram_composer.config.recipes import check_compatible, exclusion, load_recipe, recipe_names
from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import ConfigError, CramError
from cram_composer.models.factory import build_model
from cram_composer.reference.recipe_page import recipe_page
from tests.conftest import REPOSITORY
from tests.tiny_runs import TinyRuns, record

RECIPES = [load_recipe(name, "tests") for name in recipe_names()]
INGREDIENTS = [recipe for recipe in RECIPES if recipe.card.kind == "ingredient"]
PRESETS = [recipe for recipe in RECIPES if recipe.card.kind == "preset"]
NEEDS_CUDA = {"adamw-8bit"}

# Vocabulary and millions of parameters, as published in each paper, and for best-cram in benchmarks/RESULTS.md.
PUBLISHED = {
    "best-cram": (8192, 4),
    "bert-original": (30522, 110),
    "crammed-bert": (32768, 120),
    "crammed-bert-v1": (32768, 120),
    "deberta-v3-style": (128_100, 184),
    "electra-small": (30522, 14),
    "gpt-bert": (16384, 119),
    "izsak-24h": (30522, 335),
    "ltg-bert": (16384, 98),
    "modern-bert": (50368, 149),
    "mosaic-bert": (30528, 137),
}


def names(recipes) -> list[str]:
    return [recipe.name for recipe in recipes]


def composed(*listed: str, overrides: tuple[str, ...] = ()) -> RunConfig:
    settings = [f"recipes=[{','.join(listed)}]", *overrides]
    return compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", settings).config


def with_needs(recipe) -> list[str]:
    return ["crammed-bert", *recipe.card.needs, recipe.name]


@pytest.fixture(scope="session")
def ten_steps(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> TinyRuns:
    """Train on a data set with a tokenizer, which whole words need."""
    return TinyRuns(tiny_data, tmp_path_factory.mktemp("recipes"))


@pytest.mark.parametrize("recipe", RECIPES, ids=names(RECIPES))
def test_every_recipe_trains_for_ten_steps(recipe, ten_steps: TinyRuns):
    if recipe.name in NEEDS_CUDA:
        with pytest.raises(CramError, match="needs a GPU"):
            ten_steps(recipe.name, f"recipes=[{','.join(with_needs(recipe))}]")
        return
    listed = [recipe.name] if recipe.card.kind == "preset" else with_needs(recipe)
    layers = "model.num_hidden_layers=6"  # a funnel needs at least five
    precision = f"train.precision={'bf16' if recipe.name == 'bf16-residual' else 'fp32'}"
    settings = [layers, precision, "checkpoint.interval=10m"]
    found = record(ten_steps(recipe.name, f"recipes=[{','.join(listed)}]", *settings))
    assert found["status"] == "finished"
    assert found["steps"] == 10
    assert found["metrics"]["validation_loss"] is not None


@pytest.mark.parametrize("recipe", PRESETS, ids=names(PRESETS))
def test_presets_are_as_large_as_published(recipe):
    vocab_size, millions = PUBLISHED[recipe.name]
    with torch.device("meta"):
        model = build_model(ModelConfig(**recipe.values["model"]), vocab_size, {"pad": 0, "cls": 2, "sep": 3})
    count = sum(parameter.numel() for parameter in {id(p): p for p in model.parameters()}.values())
    assert abs(count / 1e6 - millions) < 0.8


@pytest.mark.parametrize("recipe", INGREDIENTS, ids=names(INGREDIENTS))
def test_an_ingredient_changes_what_it_names_and_nothing_else(recipe):
    listed = with_needs(recipe)
    run = REPOSITORY / "yamls" / "cram-1gpu.yaml"  # sets no key that an ingredient changes
    before = compose(RunConfig, run, [f"recipes=[{','.join(listed[:-1])}]"])
    after = compose(RunConfig, run, [f"recipes=[{','.join(listed)}]"])
    old, new = flatten(before.plain), flatten(after.plain)
    changed = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)} - {"recipes"}
    sections = {key.rsplit(".", 1)[0] for key in recipe.settings}
    assert all(key in recipe.settings or key.rsplit(".", 1)[0] in sections or key in sections for key in changed)
    assert all(new[key] == value for key, value in recipe.settings.items()), "the YAML does not undo it"
    assert changed or recipe.name in {"batch-size-ramp", "gradient-clipping"}, "crammed-bert has these already"


def test_every_pair_of_ingredients_mixes_or_says_why_not():
    pairs = list(itertools.combinations(INGREDIENTS, 2))
    mixed = [pair for pair in pairs if exclusion(*pair) is None]
    assert len(mixed) > len(pairs) / 2, "most do"
    for first, second in pairs:
        if exclusion(first, second) is not None:
            with pytest.raises(ConfigError, match=f"'{first.name}' and '{second.name}' exclude each other: "):
                check_compatible([first, second], "tests")
    for first, second in mixed[::60]:  # one composition takes 0.1 s
        listed = dict.fromkeys(["crammed-bert", *first.card.needs, *second.card.needs, first.name, second.name])
        composed(*listed, overrides=("model.num_hidden_layers=6",))  # a funnel needs at least five


def test_documented_conflicts_are_refused_in_either_order():
    declared = [(recipe.name, other) for recipe in RECIPES for other in recipe.card.conflicts]
    assert declared
    for name, other in declared:
        assert other in recipe_names(), f"{name} excludes '{other}', which is not there"
        for pair in ((name, other), (other, name)):
            with pytest.raises(ConfigError, match="exclude each other"):
                composed("crammed-bert", *pair)


def test_the_page_of_recipes_is_made_of_the_cards():
    page = Path(REPOSITORY / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert page == recipe_page(RECIPES), "make it anew: cram recipes --markdown > docs/reference/recipes.md"
