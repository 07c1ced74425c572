"""What each recipe does to the held-out loss of a small model at equal tokens, paired by seed.

cram data build benchmarks/effects.yaml
python -m benchmarks.recipe_effects runs/effects --recipes muon rmsnorm --jobs 2
python -m benchmarks.recipe_effects runs/effects-6 --recipes funnel elc --jobs 2 --set model.num_hidden_layers=6

The yardstick is crammed-bert with rope: with its own positions, a run of this size does not get past how often each
piece of a word occurs, and nothing could be told apart. A recipe that excludes rope takes its place.

What is trained is recipe_effects.yaml; `--set budget.tokens=5000000` trains longer.

A run is one process with one thread, so jobs do not slow each other through their threads. What was trained is not
trained again: the same command goes on after a stop. Speed is not measured here, where runs share the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cram_composer.analysis.compare.statistics import compare_means
from cram_composer.config import compose
from cram_composer.config.recipes import exclusion, load_recipe, recipe_names
from cram_composer.config.schema.run import RunConfig
from cram_composer.config.validation.run import check_run
from cram_composer.data.loading.shared_memory import remove_stale_shared_memory
from cram_composer.errors import CramError
from cram_composer.train.launch import start

_RUN = Path(__file__).with_suffix(".yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="default: every ingredient")
    parser.add_argument("--base", nargs="+", metavar="NAME", default=["crammed-bert", "rope"], help="of the yardstick")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every run, the yardstick's too")
    options = parser.parse_args()
    ingredients = [name for name in recipe_names() if load_recipe(name, "effects").card.kind == "ingredient"]
    names = options.recipes or [name for name in ingredients if name not in options.base]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cram_composer.train.loop", "pytorch_optimizer"])
    wanted = [
        _Wanted(name, seed, _recipes(options.base, name), options.set, options.folder)
        for name in (None, *names)
        for seed in range(1, options.seeds + 1)
    ]
    yardstick: list[float] = []
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        done = pool.imap(_train, wanted)
        for name in (None, *names):
            losses, problems = zip(*(_next(done) for _ in range(options.seeds)), strict=True)
            if any(problems):
                print(f"{name or 'yardstick':28} {next(filter(None, problems))}", flush=True)
            elif name is None:
                yardstick = list(losses)
                print(f"yardstick {statistics.fmean(losses):.4f}: {', '.join(f'{x:.4f}' for x in losses)}", flush=True)
            else:
                print(_row(name, losses, yardstick), flush=True)
        pool.close()
        pool.join()


def _next(done: Iterator[tuple[float, str]]) -> tuple[float, str]:
    """The next run's outcome, without the shared memory that forked processes leave behind when they end."""
    outcome = next(done)
    remove_stale_shared_memory()
    return outcome


class _Wanted(NamedTuple):
    name: str | None
    seed: int
    recipes: list[str]
    settings: list[str]
    folder: Path


def _recipes(base: list[str], name: str | None) -> list[str]:
    """The yardstick's, without what the recipe excludes, what it needs, and the recipe."""
    if name is None:
        return base
    added = [*load_recipe(name, "effects").card.needs, name]
    kept = [one for one in base if not any(_excludes(one, other) for other in added)]
    return list(dict.fromkeys([*kept, *added]))


def _excludes(one: str, other: str) -> bool:
    return one != other and exclusion(load_recipe(one, "effects"), load_recipe(other, "effects")) is not None


def _train(wanted: _Wanted) -> tuple[float, str]:
    """Train, unless that was done: the held-out loss in nats, and why there is none."""
    path = wanted.folder / f"{wanted.name or 'yardstick'}-{wanted.seed}"
    listed = [f"recipes=[{','.join(wanted.recipes)}]", f"seed={wanted.seed}", *wanted.settings]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        composed = compose(RunConfig, _RUN, listed)
        check_run(composed.config, world_size=1)
        with open(f"{path}.log", "a") as log:
            sys.stdout = sys.stderr = log
            start(composed, path)
    except CramError as error:
        return math.nan, str(error)
    return json.loads((path / "record.json").read_text())["metrics"]["validation_loss"], ""


def _row(name: str, losses: Sequence[float], yardstick: Sequence[float]) -> str:
    """Mean difference to the yardstick's run of the same seed, with Student's 95 % interval."""
    found = compare_means(dict(enumerate(losses)), dict(enumerate(yardstick)))
    return f"{name:28} {statistics.fmean(losses):.4f}, {found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


if __name__ == "__main__":
    main()
