"""Seconds from the command to the end of the first step, with a cold and a warm compile cache.

python -m benchmarks.first_step data.local=DATA
python -m benchmarks.first_step --yaml yamls/cram-1gpu.yaml data.local=DATA

Every round trains two steps three times: with an empty cache of compiled code, with the cache of that run, and without
compilation. Set-up lasts from the start of the process to the start of the budget: imports, data set, model, trainer.
The first step counts against the budget.
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

from benchmarks.short_run import REPOSITORY, STEADY, spread

_LOOK = 0.02  # seconds between reads of the trace
_SIDES = ("cold", "warm", "not compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yaml", default="yamls/cram-cpu.yaml")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="key=value, overrides the YAML")
    options = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in _SIDES}
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as cache:
            for side in _SIDES:
                found[side].append(_train(side, options.yaml, options.overrides, cache))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    print("| cache | first step, s | set-up, s | sum, s | relative to cold |\n| --- | --- | --- | --- | --- |")
    for side, times in found.items():
        setups, steps = zip(*times, strict=True)
        totals = [sum(pair) for pair in times]
        ratios = [total / sum(cold) for total, cold in zip(totals, found["cold"], strict=True)]
        columns = " | ".join(spread(values, ".1f") for values in (steps, setups, totals))
        print(f"| {side} | {columns} | {statistics.median(ratios):.2f} |")


def _train(side: str, yaml: str, overrides: list[str], cache: str) -> tuple[float, float]:
    """Return the seconds of set-up and of the first step."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = [*STEADY, "budget={wall: null, steps: 2}", f"runs_dir={scratch}", "run_name=run", *overrides]
        if side == "not compiled":
            settings.append("train.compile=off")
        trace = Path(scratch) / "run" / "trace.jsonl"
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "train.py", yaml, *settings],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"},
        )
        ended = None
        while process.poll() is None:
            if ended is None and trace.exists() and "\n" in trace.read_text():
                ended = time.perf_counter()
            time.sleep(_LOOK)
        if ended is None or process.returncode != 0:
            raise SystemExit(f"{side}: {process.stdout.read()[-2000:] if process.stdout else ''}")
        step = json.loads(trace.read_text().splitlines()[0])["step_seconds"]
        return ended - start - step, step


if __name__ == "__main__":
    main()
