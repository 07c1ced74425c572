"""Every recipe under every strategy trains as with DDP or is rejected: docs/reference/strategies.md."""

from __future__ import annotations

import pytest

from cram_composer.config.recipes import load_recipe, recipe_names
from cram_composer.config.validation.run import check_run
from cram_composer.config.validation.scaleout import refusal
from cram_composer.errors import ConfigError
from tests.scaleout.ranks import STRATEGIES, Ranks
from tests.scaleout.table import PATH, composed, recipe_table, recipes_named, section
from tests.tiny_runs import losses

LAYERS = "model.num_hidden_layers=6"  # a funnel needs at least five
NEEDS_CUDA = {"adamw-8bit"}
# Settings that make the effect of a recipe visible within six steps.
SHORT = {
    "bf16-residual": ["train.precision=bf16"],
    "lawa": ["algorithms.lawa.k=3"],
    "layer-freezing": ["algorithms.layer_freezing.freeze_start=0.1"],
    "seq-length-warmup": ["algorithms.seq_length_warmup.min_seq_length=4"],
    "seq-length-warmup-truncate": [f"algorithms.seq_length_warmup.{key}=4" for key in ("min_seq_length", "step_size")],
    "stochastic-depth": ["algorithms.stochastic_depth.drop_rate=0.6"],
    "swa": ["algorithms.swa.swa_start=0.3"],
}
QUICK = [("muon", "fsdp2"), ("lion", "zero-3")]


def test_the_page_has_every_recipe_under_every_strategy():
    assert section(PATH.read_text(encoding="utf-8"), "recipes") == recipe_table(), "python -m tests.scaleout.table"


@pytest.mark.parametrize(
    ("recipe", "strategy"),
    [
        *QUICK,
        *(
            pytest.param(recipe, strategy, marks=pytest.mark.slow)
            for recipe in recipe_names()
            if recipe not in NEEDS_CUDA
            for strategy in ("fsdp2", "zero-2", "zero-3")
        ),
    ],
)
def test_a_recipe_trains_as_with_ddp_or_is_refused(
    recipe: str, strategy: str, ranks: Ranks, with_ddp: dict[str, list[float]]
):
    card = load_recipe(recipe, "tests")
    config = composed(card, *STRATEGIES[strategy], "train.device_train_microbatch_size=4")
    if refusal(config) is not None:
        with pytest.raises(ConfigError, match=r"^scaleout\.strategy: [^\n]*$"):
            check_run(config, world_size=2)
        return
    settings = [f"recipes=[{','.join(recipes_named(card))}]", LAYERS, *SHORT.get(recipe, []), "eval.interval=0.4"]
    if recipe not in with_ddp:
        with_ddp[recipe] = losses(ranks(f"{recipe}-ddp", 2, *settings))
    found = losses(ranks(f"{recipe}-{strategy}", 2, *STRATEGIES[strategy], *settings))
    assert found == pytest.approx(with_ddp[recipe], rel=1e-4)


@pytest.fixture(scope="module")
def with_ddp() -> dict[str, list[float]]:
    """Return a cache of losses by recipe, so that each trains once."""
    return {}
