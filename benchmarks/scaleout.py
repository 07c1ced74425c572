"""Step time and memory of every strategy, compared with DDP in a plain loop.

python -m benchmarks.scaleout --ranks 2 --steps 20 --rounds 3 data.local=DATA model.hidden_size=512
python -m benchmarks.scaleout --ranks 8 --yaml yamls/cram-1gpu.yaml data.local=DATA recipes=[crammed-bert]   # GPUs

ZeRO does not support Muon, the optimizer of yamls/cram-1gpu.yaml, hence the recipes above.

Model, rows, optimizer and clipping are the same. Every round trains with each strategy in turn, so that other load on
the machine affects all of them. The time is the median of all steps after the first three. The memory is the peak
allocated by a rank on a GPU, or on a CPU the growth of its resident memory since before the model was built.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.short_run import REPOSITORY, STEADY, build_run, memory, step_by_hand

STRATEGIES = {
    "plain loop, torch DDP": [],
    "ddp": ["scaleout=ddp"],
    "fsdp2": ["scaleout=fsdp2"],
    "deepspeed ZeRO-1": ["scaleout=deepspeed", "scaleout.deepspeed.zero_optimization.stage=1"],
    "deepspeed ZeRO-2": ["scaleout=deepspeed", "scaleout.deepspeed.zero_optimization.stage=2"],
    "deepspeed ZeRO-3": ["scaleout=deepspeed", "scaleout.deepspeed.zero_optimization.stage=3"],
}
_WARM_UP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--yaml", default="yamls/cram-cpu.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, overrides the YAML")
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    memory: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    for number in range(options.rounds):
        for name in STRATEGIES:
            for result in _launch(name, options):
                seconds[name] += result["seconds"]
                memory[name].append(result["mib"])
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    plain = statistics.median(seconds["plain loop, torch DDP"])
    print("| strategy | step, ms | relative to plain loop | memory per rank, MiB |\n| --- | --- | --- | --- |")
    for name in STRATEGIES:
        median = statistics.median(seconds[name])
        print(f"| {name} | {1000 * median:.1f} | {median / plain:.2f} x | {max(memory[name]):,.0f} |")


def _launch(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with one strategy; return the figures of every rank."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = [
            *STEADY,
            "logging.tensorboard=false",
            f"budget={{wall: null, steps: {options.steps}}}",
            f"runs_dir={scratch}",
            *options.overrides,
            *STRATEGIES[name],
        ]
        launcher = str(Path(sys.executable).parent / "composer")
        kind = "trainer" if STRATEGIES[name] else "plain"
        command = [
            launcher,
            "-n",
            str(options.ranks),
            "-m",
            "benchmarks.scaleout",
            kind,
            scratch,
            options.yaml,
            *settings,
        ]
        result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        if result.returncode != 0:
            raise SystemExit(f"{name}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
        return [json.loads(path.read_text()) for path in Path(scratch).glob("rank-*.json")]


def _rank(kind: str, scratch: Path, yaml: str, settings: list[str]) -> None:
    """Train as one rank and write the figures to a file."""
    rank = int(os.environ["RANK"])
    built, before = build_run(yaml, settings, scratch / "run")
    device, folder = built.device, built.folder
    if kind == "plain":
        seconds = _plain_loop(built, device)
    else:
        built.trainer.fit()  # without final evaluation and checkpoint, which the plain loop lacks
        # Only rank 0 writes a trace; ranks synchronize in every step.
        lines = (folder.path / "trace.jsonl").read_text().splitlines() if rank == 0 else []
        seconds = [json.loads(line)["step_seconds"] for line in lines]
    found = {"seconds": seconds[_WARM_UP:], "mib": memory(built, before)}
    (scratch / f"rank-{rank}.json").write_text(json.dumps(found))


def _plain_loop(run: Any, device: Any) -> list[float]:
    """Train in a plain PyTorch loop, with the parts of `build`; return the seconds of each step."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = run.trainer.state.model
    model = model if isinstance(model, DistributedDataParallel) else DistributedDataParallel(model)
    (optimizer,) = run.trainer.state.optimizers
    on_gpu = device.name == "gpu"
    place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    model.train()
    seconds = []
    batches = iter(run.batches.loader)
    for _ in range(run.config.budget.steps):
        start = time.perf_counter()  # before the rows are loaded, as in the trace of a run
        microbatches = run.batches.loader.split_batch(next(batches), run.config.train.device_train_microbatch_size)
        microbatches = [{key: t.to(place, non_blocking=True) for key, t in part.items()} for part in microbatches]
        step_by_hand(model, optimizer, microbatches, run, model.no_sync)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("plain", "trainer"):
        _rank(sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
    else:
        main()
