"""Each algorithm recipe in a real run of ten steps: compared with the run without it, and killed and resumed."""

from __future__ import annotations

import re
from pathlib import Path

import composer.algorithms
import pytest
import torch

from cram_composer.config import compose
from cram_composer.config.recipes import recipe_names
from cram_composer.config.schema.run import RunConfig
from cram_composer.errors import ConfigError
from tests.conftest import REPOSITORY
from tests.tiny_runs import TinyRuns, losses, record, same, saved

# Settings that make the effect of a recipe visible within ten steps.
SHORT = {
    "gradient-clipping-value": ["algorithms.gradient_clipping.clipping_threshold=0.01"],
    "seq-length-warmup-truncate": [f"algorithms.seq_length_warmup.{key}=4" for key in ("min_seq_length", "step_size")],
    "lawa": ["algorithms.lawa.k=3"],
    "low-precision-layernorm": ["train.precision=bf16"],
}
AVERAGES = {"ema": "EMA", "swa": "SWA", "lawa": "LAWA"}
# These do not change training: the preset already clips, a CPU uses torch's norms, and averages are not trained.
SAME_STEPS = ["gradient-clipping", "fused-layernorm", "ema", "lawa"]
OTHER_STEPS = [
    "gradient-clipping-adaptive",
    "gradient-clipping-value",
    "label-smoothing",
    "layer-freezing",
    "low-precision-layernorm",
    "sam",
    "seq-length-warmup-truncate",
    "stochastic-depth",
    "swa",
]


def settings(recipe: str) -> list[str]:
    return [f"recipes=[crammed-bert,{recipe}]", *SHORT.get(recipe, [])]


@pytest.mark.parametrize("recipe", [*SAME_STEPS, *OTHER_STEPS])
def test_a_recipe_trains_and_a_killed_run_resumes_exactly(recipe: str, tiny_run: TinyRuns, plain_run: Path):
    whole = tiny_run(recipe, *settings(recipe))
    assert record(whole)["status"] == "finished" and record(whole)["steps"] == 10
    assert same(losses(whole), losses(plain_run)) == (recipe in SAME_STEPS)
    killed = tiny_run.resume(whole, 6, *settings(recipe))
    assert same(losses(killed), losses(whole))
    assert same(saved(killed), saved(whole))
    assert same(record(killed)["metrics"], record(whole)["metrics"])
    if recipe in AVERAGES:
        average, weights = saved(whole)["algorithms"][AVERAGES[recipe]]["average"], saved(whole)["model"]
        assert average.keys() <= weights.keys()
        assert not all(torch.equal(average[name], weights[name]) for name in average)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ema", "swa"),
        ("swa", "lawa"),
        ("lawa", "ema"),
        ("gradient-clipping", "gradient-clipping-value"),
        ("gradient-clipping-adaptive", "gradient-clipping-value"),
        ("seq-length-warmup", "seq-length-warmup-truncate"),
        ("fused-layernorm", "low-precision-layernorm"),
        ("stochastic-depth", "post-norm"),
        ("layer-freezing", "recurrent"),
    ],
)
def test_recipes_that_exclude_each_other(one: str, other: str):
    for pair in (f"{one},{other}", f"{other},{one}"):
        with pytest.raises(ConfigError, match="exclude each other"):
            compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", [f"recipes=[crammed-bert,{pair}]"])


@pytest.mark.parametrize("recipe", OTHER_STEPS)
def test_a_recipe_changes_its_own_section_and_nothing_else(recipe: str):
    before, after = (
        compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", [f"recipes=[{names}]"]).plain
        for names in ("crammed-bert", f"crammed-bert,{recipe}")
    )
    section = max((name for name in after["algorithms"] if recipe.replace("-", "_").startswith(name)), key=len)
    changed = {name for name in after["algorithms"] if after["algorithms"][name] != before["algorithms"][name]}
    assert changed == {section}
    for plain in (before, after):
        del plain["algorithms"], plain["recipes"]
    assert before == after


def test_the_documentation_has_every_algorithm_of_composer():
    rows = [
        line.split("|")[1:-1]
        for line in (REPOSITORY / "docs" / "reference" / "composer-algorithms.md").read_text().splitlines()
    ]
    table = [[cell.strip() for cell in row] for row in rows if len(row) == 4][2:]
    assert sorted(row[0] for row in table) == sorted(composer.algorithms.__all__)
    named = {recipe for row in table for recipe in re.findall("`([a-z-]+)`", row[2])}
    assert named <= set(recipe_names())
    assert {*OTHER_STEPS, "ema", "gradient-clipping"} <= named
