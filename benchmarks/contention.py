"""Tokens/s of a run beside busy processes, with a fixed number of threads and with train.threads=auto.

python -m benchmarks.contention
python -m benchmarks.contention --busy 0 1 2 --rounds 3 --seconds 30 model.num_hidden_layers=2

In every round each side trains once beside each number of processes that keep one core busy each, all in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.short_run import REPOSITORY, spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yaml", default="yamls/cram-cpu.yaml")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=30, help="budget of a run")
    parser.add_argument("overrides", nargs="*", help="key=value, overrides the YAML")
    options = parser.parse_args()
    sides = {"all threads": f"train.threads={len(os.sched_getaffinity(0))}", "auto": "train.threads=auto"}
    found: dict[tuple[int, str], list[float]] = {}
    for number in range(-1, options.rounds):  # the first round fills the cache of compiled code
        for count in options.busy if number >= 0 else [0]:
            for side, threads in sides.items():
                with _busy_processes(count):
                    speed = _train(options.yaml, [f"budget={options.seconds}s", threads, *options.overrides])
                if number >= 0:
                    found.setdefault((count, side), []).append(speed)
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    print("| busy processes | all threads, tokens/s | auto, tokens/s | ratio |\n| --- | --- | --- | --- |")
    for count in options.busy:
        before, after = (found[count, side] for side in sides)
        ratios = [new / old for new, old in zip(after, before, strict=True)]
        print(f"| {count} | {spread(before, ',.0f')} | {spread(after, ',.0f')} | {statistics.median(ratios):.2f} |")


@contextmanager
def _busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _train(yaml: str, overrides: list[str]) -> float:
    """Return the tokens/s of the steps after the first five seconds, in which the run compiles and adapts."""
    with tempfile.TemporaryDirectory() as scratch:
        fixed = ["export.enabled=false", "eval.interval=0", "logging.tensorboard=false", "run_name=run"]
        command = [sys.executable, "train.py", yaml, *fixed, f"runs_dir={scratch}", *overrides]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        steps = [json.loads(line) for line in (Path(scratch) / "run" / "trace.jsonl").open()]
        late = [step for step in steps if step["elapsed"] >= 5.0]
        return (late[-1]["tokens"] - late[0]["tokens"]) / (late[-1]["elapsed"] - late[0]["elapsed"])


if __name__ == "__main__":
    main()
