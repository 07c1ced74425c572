"""The tables of docs/reference/strategies.md: `python -m tests.scaleout.table [--agreement]` writes them."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cram_composer.config import compose
from cram_composer.config.recipes import Recipe, load_recipe, recipe_names
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.scaleout import refusal
from cram_composer.storage.files import write_atomic
from tests.conftest import REPOSITORY
from tests.scaleout.ranks import STRATEGIES, Ranks
from tests.tiny_runs import losses

PATH = REPOSITORY / "docs" / "reference" / "strategies.md"
LONG = 50  # steps
_COLUMNS = {"DDP": "ddp", "FSDP2": "fsdp2", "DeepSpeed (ZeRO-1, 2, 3)": "deepspeed"}


def recipes_named(recipe: Recipe) -> list[str]:
    """List the recipe with the recipes it needs and, for an ingredient, its preset."""
    return [recipe.name] if recipe.card.kind == "preset" else ["crammed-bert", *recipe.card.needs, recipe.name]


def composed(recipe: Recipe, *settings: str) -> RunConfig:
    """Compose a CPU run with the recipe."""
    named = f"recipes=[{','.join(recipes_named(recipe))}]"
    layers = "model.num_hidden_layers=6"  # a funnel needs at least five
    return compose(RunConfig, REPOSITORY / "yamls" / "cram-cpu.yaml", [named, layers, *settings]).config


def recipe_table() -> str:
    """Return a table with a row per recipe: "yes" for each strategy that supports it, else the reason."""
    lines = [f"| recipe | {' | '.join(_COLUMNS)} |", f"| --- |{' --- |' * len(_COLUMNS)}"]
    for name in recipe_names():
        cells = [_cell(load_recipe(name, "tests"), strategy) for strategy in _COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(recipe: Recipe, strategy: str) -> str:
    stages = range(1, 4) if strategy == "deepspeed" else [1]
    stage = "scaleout.deepspeed.zero_optimization.stage"
    found = {n: refusal(composed(recipe, f"scaleout={strategy}", f"{stage}={n}")) for n in stages}
    refused = {n: refusal for n, refusal in found.items() if refusal is not None}
    if not refused:
        return "yes"
    setting, rule = next(iter(refused.values()))
    where = "no" if len(refused) == len(found) else f"not with ZeRO-{' and '.join(map(str, refused))}"
    return f"{where}, `{setting}`: {rule.reason}"


def agreement(ranks: Ranks, counts: Sequence[int]) -> dict[int, dict[str, float]]:
    """Return the largest relative difference of a loss from one rank's, by number of ranks and strategy."""
    expected = losses(ranks(f"long-1-{counts}", 1, steps=LONG))

    def difference(found: list[float]) -> float:
        return max(abs(a - b) / b for a, b in zip(found, expected, strict=True))

    return {
        count: {
            name: difference(losses(ranks(f"long-{count}-{name}", count, *settings, steps=LONG)))
            for name, settings in STRATEGIES.items()
        }
        for count in counts
    }


def agreement_table(found: dict[int, dict[str, float]]) -> str:
    """Format the result of `agreement` as a Markdown table."""
    lines = [f"| strategy | {' | '.join(f'{count} ranks' for count in found)} |", f"| --- |{' --- |' * len(found)}"]
    lines += [f"| {name} | {' | '.join(f'{found[count][name]:.1e}' for count in found)} |" for name in STRATEGIES]
    return "\n".join(lines) + "\n"


def section(text: str, name: str) -> str:
    """Return the generated section `name` of the page."""
    match = re.search(rf"<!-- {name} -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert match is not None
    return match[1]


def _replace(name: str, table: str) -> None:
    text = PATH.read_text(encoding="utf-8")
    write_atomic(PATH, text.replace(f"<!-- {name} -->\n{section(text, name)}", f"<!-- {name} -->\n{table}"))


def main() -> None:
    """Write the table of recipes and, with --agreement, the table of losses, which takes some minutes."""
    from tests.conftest import build_tiny_data

    _replace("recipes", recipe_table())
    if "--agreement" in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            ranks = Ranks(build_tiny_data(Path(scratch)), Path(scratch))
            _replace("agreement", agreement_table(agreement(ranks, [2, 4])))
            ranks.close()


if __name__ == "__main__":
    main()
