"""Effect of each recipe on the held-out loss of a small model at equal tokens, paired by seed.

cram data build benchmarks/effects.yaml
python -m benchmarks.recipe_effects runs/effects --recipes muon rmsnorm --jobs 2
python -m benchmarks.recipe_effects runs/effects-6 --recipes funnel elc --jobs 2 --set model.num_hidden_layers=6

The baseline is crammed-bert with rope. With the positions of crammed-bert, a run of this size learns little more than
token frequencies, so recipes could not be told apart. A recipe that excludes rope replaces it.

The runs are configured by recipe_effects.yaml; `--set budget.tokens=5000000` trains longer.

Each run is one process with one thread, so that parallel jobs do not compete for cores. The same command resumes after
an interruption and skips finished runs. Speed is not measured, because runs share the machine.
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
    parser.add_argument("folder", type=Path, help="folder of the runs")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="default: every ingredient")
    parser.add_argument("--base", nargs="+", metavar="NAME", default=["crammed-bert", "rope"], help="of the baseline")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11))
    parser.add_argument("--jobs", type=int, default=1, help="parallel runs")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every run and the baseline")
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
    baseline: list[float] = []
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        done = pool.imap(_train, wanted)
        for name in (None, *names):
            losses, problems = zip(*(_next(done) for _ in range(options.seeds)), strict=True)
            if any(problems):
                print(f"{name or 'baseline':28} {next(filter(None, problems))}", flush=True)
            elif name is None:
                baseline = list(losses)
                print(f"baseline {statistics.fmean(losses):.4f}: {', '.join(f'{x:.4f}' for x in losses)}", flush=True)
            else:
                print(_row(name, losses, baseline), flush=True)
        pool.close()
        pool.join()


def _next(done: Iterator[tuple[float, str]]) -> tuple[float, str]:
    """Return the next run's outcome and remove shared memory left behind by forked processes."""
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
    """Return the baseline's recipes without those that `name` excludes, then its needs, then `name`."""
    if name is None:
        return base
    added = [*load_recipe(name, "effects").card.needs, name]
    kept = [one for one in base if not any(_excludes(one, other) for other in added)]
    return list(dict.fromkeys([*kept, *added]))


def _excludes(one: str, other: str) -> bool:
    return one != other and exclusion(load_recipe(one, "effects"), load_recipe(other, "effects")) is not None


def _train(wanted: _Wanted) -> tuple[float, str]:
    """Train unless finished; return the held-out loss in nats, or NaN and the reason for its absence."""
    path = wanted.folder / f"{wanted.name or 'baseline'}-{wanted.seed}"
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


def _row(name: str, losses: Sequence[float], baseline: Sequence[float]) -> str:
    """Format the mean difference from the baseline run of the same seed, with Student's 95 % interval."""
    found = compare_means(dict(enumerate(losses)), dict(enumerate(baseline)))
    return f"{name:28} {statistics.fmean(losses):.4f}, {found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


if __name__ == "__main__":
    main()
