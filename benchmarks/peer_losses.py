"""Held-out loss at equal wall-clock, one core each: two recipes, the paper's code and transformers' Trainer.

CRAMMING_PYTHON=ENVIRONMENT/bin/python python -m benchmarks.peer_losses CHECKOUT OUTPUT data.local=DATA
... --seconds 75,150,300 --figure FILE.svg data.local=DATA
python -m benchmarks.peer_losses CHECKOUT OUTPUT --sides trainer --seeds 1 data.local=DATA optimizer.lr=5e-4

CHECKOUT and ENVIRONMENT are as for benchmarks/peer_cramming.py. All sides have 4 layers x 128, the same text, tokenizer
and rows. The paper's code runs its engine, data loader and schedule (`train=bert-o4`, batches of 64, inductor, fp32 on
a CPU), the Trainer a BERT with the settings of benchmarks/bert.yaml and a rate that rises for 6 % of the time and then
falls to zero. Every side masks as it always does; all are scored on the same held-out rows, 15 % all-[MASK]. Every
budget is a run of its own, with its own schedule. Results stay in OUTPUT, one file each, and are not repeated.
Compilation is inside the budget, building the model is not; every side first runs for a short time, so that no
compilation starts with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.peer_cramming import held_out_loss, run_cramming
from benchmarks.short_run import STEADY, build_run, in_a_process

# Side: the YAML of its run, and its name in the figure.
_SIDES = {
    "best-cram": ("yamls/cram-2core.yaml", "best-cram"),
    "cram-cpu": ("yamls/cram-cpu.yaml", "crammed-bert with rotary positions"),
    "cramming": ("", "the paper's code"),
    "trainer": ("benchmarks/bert.yaml", "transformers Trainer"),
}
_HELD_OUT_ROWS = 1024
_MOST_TOKENS_PER_SECOND = 60_000  # of the peers on one core: sets the number of rows prepared for them
_WARM_UP_SECONDS = 20.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seconds", default="300", help="budgets, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", default=",".join(_SIDES))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one core each")
    parser.add_argument("--figure", type=Path, metavar="FILE.svg", help="draw the losses against the budget")
    parser.add_argument("overrides", nargs="*", help="key=value, for the runs of cram-composer and the Trainer's: data")
    options = parser.parse_intermixed_args()
    sides = options.sides.split(",")
    if unknown := set(sides) - set(_SIDES):
        raise SystemExit(f"--sides: unknown {', '.join(sorted(unknown))}; choose from {', '.join(_SIDES)}")
    budgets = sorted(set(map(float, options.seconds.split(","))))
    options.output = options.output.resolve()
    options.output.mkdir(parents=True, exist_ok=True)
    _prepare(options.output, options.seeds, budgets[-1], options.overrides)
    runs = [(side, seed, budget) for seed in range(1, options.seeds + 1) for budget in budgets for side in sides]
    os.environ["OMP_NUM_THREADS"] = "1"
    cores: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in sorted(os.sched_getaffinity(0))[: options.jobs]:
        cores.put(core)
    # A thread of the pool has a core of its own, and so have the processes that it starts.
    with ThreadPoolExecutor(options.jobs, initializer=lambda: os.sched_setaffinity(0, {cores.get()})) as pool:
        if any(not _result(options.output, *run).exists() for run in runs):
            list(pool.map(lambda side: _train(options, side, 1, _WARM_UP_SECONDS), sides))
        results = list(pool.map(lambda run: _train(options, *run, measured=True), runs))
    losses: dict[tuple[str, float], list[float]] = {}
    tokens: dict[tuple[str, float], list[float]] = {}
    for (side, _, budget), result in zip(runs, results, strict=True):
        losses.setdefault((side, budget), []).append(result["loss"])
        tokens.setdefault((side, budget), []).append(result["tokens"])
    print("| budget, s | side | held-out loss, nats, by seed | mean | minus the first side, paired, 95 % | tokens |")
    print("| ---: | --- | --- | ---: | --- | ---: |")
    for budget in budgets:
        for side in sides:
            values = losses[side, budget]
            by_seed = ", ".join(f"{loss:.3f}" for loss in values)
            difference = "" if side == sides[0] else _difference(values, losses[sides[0], budget])
            seen = f"{statistics.fmean(tokens[side, budget]) / 1e6:.2f} M"
            print(f"| {budget:g} | {side} | {by_seed} | {statistics.fmean(values):.3f} | {difference} | {seen} |")
    if options.figure is not None:
        _draw(losses, sides, budgets, options.figure)


def _draw(losses: dict[tuple[str, float], list[float]], sides: list[str], budgets: list[float], output: Path) -> None:
    """Draw the mean loss of each side against the budget, and a dot for every run."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    from cram_composer.analysis.html.style import LIGHT, house_style, series_style

    with house_style():
        figure = Figure(figsize=(7.2, 3.6), layout="constrained", facecolor=LIGHT["card"])
        axes = figure.subplots()
        for number, side in enumerate(sides):
            colour, dash = series_style(number)
            means = [statistics.fmean(losses[side, budget]) for budget in budgets]
            axes.plot(budgets, means, color=colour, linestyle=dash, label=_SIDES[side][1])
            for budget in budgets:
                values = losses[side, budget]
                axes.plot([budget] * len(values), values, "o", color=colour, markersize=4)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(budgets))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} s"))
        axes.set_xlabel("budget on one CPU core; every dot is a run of its own")
        axes.set_title("Held-out loss (nats per masked token)")
        axes.legend()
        figure.savefig(output, facecolor=LIGHT["card"])


def _result(output: Path, side: str, seed: int, seconds: float) -> Path:
    return output / f"{side}-{seed}-{seconds:g}.json"


def _train(
    options: argparse.Namespace, side: str, seed: int, seconds: float, measured: bool = False
) -> dict[str, float]:
    """Train one side; return its loss and tokens. If `measured`, they are kept in the output and not measured twice."""
    kept = _result(options.output, side, seed, seconds)
    if measured and kept.exists():
        return json.loads(kept.read_text())
    print(f"{side}, seed {seed}, {seconds:g} s", file=sys.stderr)
    asked = [str(options.output), str(seconds), str(seed)]
    if side == "cramming":
        answer = run_cramming(options.checkout, "loss", *asked)
    else:
        answer = in_a_process("benchmarks.peer_losses", "side", side, *asked, *options.overrides)
    if measured:
        kept.write_text(answer)
    return json.loads(answer)


def _prepare(output: Path, seeds: int, seconds: float, overrides: list[str]) -> None:
    """Write the tokenizer, masked held-out rows, and the train rows of every seed."""
    import numpy as np

    for seed in range(1, seeds + 1):
        prepared = output / f"rows-{seed}.npy"
        # More may be needed than for the budgets of an earlier call.
        if prepared.exists() and np.load(prepared, mmap_mode="r").size >= 0.99 * seconds * _MOST_TOKENS_PER_SECOND:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            settings = [*STEADY, f"eval.final_rows={_HELD_OUT_ROWS}", f"seed={seed}", *overrides]
            run, _ = build_run(_SIDES["cram-cpu"][0], settings, Path(scratch) / "run")
            shutil.copytree(run.data.tokenizer, output / "tokenizer", dirs_exist_ok=True)
            batches = run.batches.held_out[0].final
            parts = {"ids": "input_ids", "places": "masked_positions", "labels": "labels"}
            held_out = {name: np.concatenate([b[key].numpy() for b in batches]) for name, key in parts.items()}
            np.savez(output / "held-out.npz", **held_out)
            rows = int(seconds * _MOST_TOKENS_PER_SECOND / run.data.manifest["sequence_length"])
            np.save(prepared, run.batches.loader.stream.take(rows))


def _side(side: str, folder: Path, seconds: float, seed: int, overrides: list[str]) -> dict[str, float]:
    """Train a run of cram-composer or a Trainer for `seconds`; return its held-out loss and tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        if side == "trainer":
            return _trainer(folder, seconds, seed, overrides, scratch)
        settings = [
            f"budget={seconds}s", f"seed={seed}", "run_name=run", f"runs_dir={scratch}", "eval.interval=0",
            f"eval.final_rows={_HELD_OUT_ROWS}", "train.threads=1", "checkpoint.interval=1d",
        ]  # fmt: skip
        command = [sys.executable, "-m", "cram_composer.cli", "train", _SIDES[side][0], *settings, *overrides]
        subprocess.run(command, check=True, stdout=sys.stderr)
        record = json.loads((Path(scratch) / "run" / "record.json").read_text())
        import torch
        from transformers import AutoModelForMaskedLM

        model = AutoModelForMaskedLM.from_pretrained(Path(scratch) / "run" / "export", trust_remote_code=True).eval()
        loss = held_out_loss(folder, lambda ids: model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        return {"loss": loss, "recorded": record["metrics"]["validation_loss"], "tokens": record["tokens"]}


def _trainer(folder: Path, seconds: float, seed: int, overrides: list[str], scratch: str) -> dict[str, float]:
    import torch
    from transformers import TrainerCallback

    from benchmarks.transformers_trainer import build_trainer

    class Budget(TrainerCallback):
        """Callback that sets the rate by the elapsed time, and stops at the end of the budget."""

        start = 0.0

        def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
            self.start = time.perf_counter()

        def on_step_begin(self, arguments: Any, state: Any, control: Any, optimizer: Any = None, **rest: Any) -> None:
            progress = min((time.perf_counter() - self.start) / seconds, 1.0)
            factor = min(progress / 0.06, (1.0 - progress) / 0.94)
            for group in optimizer.param_groups:
                group["lr"] = arguments.learning_rate * factor

        def on_step_end(self, arguments: Any, state: Any, control: Any, **rest: Any) -> None:
            control.should_training_stop = time.perf_counter() - self.start >= seconds

    settings = [*STEADY, "budget=1h", f"seed={seed}", "train.threads=1", "train.device_train_microbatch_size=32"]
    run, _ = build_run(_SIDES["trainer"][0], [*settings, *overrides], Path(scratch) / "run")
    tokens_per_step = run.config.train.batch_size * run.data.manifest["sequence_length"]
    most_steps = int(seconds * _MOST_TOKENS_PER_SECOND / tokens_per_step)
    trainer = build_trainer(run, scratch, Budget(), max_steps=most_steps, lr_scheduler_type="constant")
    trainer.train()
    model = trainer.model.eval()
    loss = held_out_loss(folder, lambda ids: model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
    return {"loss": loss, "tokens": trainer.state.global_step * tokens_per_step}


def _difference(losses: list[float], others: list[float]) -> str:
    from cram_composer.analysis.compare.statistics import compare_means

    found = compare_means(dict(enumerate(losses)), dict(enumerate(others)))
    interval = "" if found.low is None else f" ({found.low:+.3f} to {found.high:+.3f})"
    return f"{found.mean:+.3f}{interval}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        _, _, side, folder, seconds, seed, *overrides, output = sys.argv
        Path(output).write_text(json.dumps(_side(side, Path(folder), float(seconds), int(seed), overrides)))
    else:
        main()
