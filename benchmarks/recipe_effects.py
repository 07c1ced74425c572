"""What each recipe does to the held-out loss of a small model at equal tokens, against crammed-bert, paired by seed.

cram data build benchmarks/effects.yaml
python -m benchmarks.recipe_effects runs/effects --recipes muon rmsnorm --jobs 2

A run is one process with one thread, so jobs do not slow each other through their threads. What was trained is not
trained again: the same command goes on after a stop. Speed is not measured here, where runs share the machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
from pathlib import Path

from cram_composer.config import compose
from cram_composer.config.checks import check_run
from cram_composer.config.recipes import load_recipe, recipe_names
from cram_composer.config.schema import RunConfig

_REPOSITORY = Path(__file__).resolve().parent.parent
_BASELINE = "crammed-bert"
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}  # at 97.5 %
_SETTINGS = [
    "data.build=benchmarks/effects.yaml",
    "data.num_workers=0",
    "train.batch_size=32",
    "train.device_train_microbatch_size=32",
    "train.compile=off",
    "train.threads=1",
    "eval.interval=0",
    "checkpoint.interval=1h",
    "logging.tensorboard=false",
    "logging.progress_bar=false",
    "export.enabled=false",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the runs")
    parser.add_argument("--recipes", nargs="+", metavar="NAME", help="default: every ingredient")
    parser.add_argument("--seeds", type=int, default=3, choices=range(2, 11))
    parser.add_argument("--tokens", type=int, default=1_500_000, help="of each run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for every run, the baseline's too")
    options = parser.parse_args()
    names = options.recipes or [n for n in recipe_names() if load_recipe(n, "effects").card.kind == "ingredient"]
    settings = [*_SETTINGS, f"budget={{wall: null, tokens: {options.tokens}}}", *options.set]
    seeds = range(1, options.seeds + 1)
    wanted = [(name, seed, settings, options.folder) for name in (_BASELINE, *names) for seed in seeds]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cram_composer.training", "pytorch_optimizer"])
    losses: dict[str, dict[int, float]] = {}
    with context.Pool(options.jobs, maxtasksperchild=1) as pool:
        for name, seed, loss in pool.imap(_loss, wanted):
            losses.setdefault(name, {})[seed] = loss
            if len(losses[name]) == options.seeds:
                print(_row(name, losses[name], losses[_BASELINE]), flush=True)
        pool.close()
        pool.join()


def _loss(wanted: tuple[str, int, list[str], Path]) -> tuple[str, int, float]:
    """Train, unless that was done; the held-out loss in nats, infinite for a run that did not get to its end."""
    name, seed, settings, folder = wanted
    path = folder / f"{name}-{seed}"
    recipes = [_BASELINE] if name == _BASELINE else [_BASELINE, *load_recipe(name, "effects").card.needs, name]
    listed = [f"recipes=[{','.join(recipes)}]", f"seed={seed}", *settings]
    composed = compose(RunConfig, _REPOSITORY / "yamls" / "cram-cpu.yaml", listed)
    check_run(composed.config, world_size=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.log", "a") as log:
        sys.stdout = sys.stderr = log
        _train(composed, path)
    return name, seed, json.loads((path / "record.json").read_text())["metrics"]["validation_loss"]


def _train(composed, path: Path) -> None:
    from cram_composer.start import start

    start(composed, path)


def _row(name: str, losses: dict[int, float], baseline: dict[int, float]) -> str:
    """Mean difference to the baseline's run of the same seed, with Student's 95 % interval."""
    mean = statistics.fmean(losses.values())
    if name == _BASELINE:
        return f"{name:28} {mean:.4f} nats, seeds {', '.join(f'{loss:.4f}' for loss in losses.values())}"
    differences = [loss - baseline[seed] for seed, loss in losses.items()]
    centre = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = _STUDENT[len(differences) - 1] * error
    return f"{name:28} {mean:.4f} nats, {centre:+.4f} ({centre - half:+.4f} to {centre + half:+.4f})"


if __name__ == "__main__":
    main()
