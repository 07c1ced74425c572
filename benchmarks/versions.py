"""Tokens/s of this environment beside another one, such as that of `make test-oldest`.

python -m benchmarks.versions .venv-oldest/bin/python
python -m benchmarks.versions .venv-oldest/bin/python --yaml yamls/cram-2core.yaml --rounds 4 --seconds 40

Both train the same code at the same time, each on a core of its own, which they exchange after every round: whatever
else the machine does meets both. The first round, with an empty cache of compiled code, gives the seconds to compile.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.short_run import REPOSITORY, spread


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="Python of the other environment")
    parser.add_argument("--yaml", default="yamls/cram-cpu.yaml")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=40, help="budget of a run beside compilation")
    parser.add_argument("overrides", nargs="*", help="key=value, overrides the YAML")
    options = parser.parse_args()
    pythons = {"other": options.other.absolute(), "this": Path(sys.executable)}
    cores = sorted(os.sched_getaffinity(0))[:2]
    speeds: dict[str, list[float]] = {side: [] for side in pythons}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(-1, options.rounds):
            swapped = cores if number % 2 else cores[::-1]
            seconds = options.seconds + (70 if number < 0 else 0)
            running = {
                side: _start(python, core, Path(scratch) / f"{side}-{number}", options, seconds)
                for (side, python), core in zip(pythons.items(), swapped, strict=True)
            }
            for side, process in running.items():
                if process.wait():
                    raise SystemExit(f"{side}: the run failed, see its output above")
                run = Path(scratch) / f"{side}-{number}" / "run"
                record = json.loads((run / "record.json").read_text())
                if number < 0:
                    libraries = record["environment"]["libraries"]
                    compiled = f"{record['ledger']['inside']['compile']:.1f} s to compile"
                    print(f"{side}: torch {libraries['torch']}, {compiled}", flush=True)
                else:
                    speeds[side].append(_speed(run, seconds))
    ratios = [new / old for old, new in zip(speeds["other"], speeds["this"], strict=True)]
    print("| YAML | other, tokens/s | this, tokens/s | ratio |\n| --- | --- | --- | --- |")
    print(f"| {options.yaml} | {spread(speeds['other'], ',.0f')} | {spread(speeds['this'], ',.0f')} | ", end="")
    print(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")


def _start(python: Path, core: int, folder: Path, options: Any, seconds: int) -> subprocess.Popen[bytes]:
    quiet = ["logging.tensorboard=false", "logging.progress_bar=false"]
    fixed = [*quiet, "export.enabled=false", "eval.interval=0", "train.threads=1", "run_name=run"]
    command = [str(python), "train.py", options.yaml, *fixed, f"budget={seconds}s", f"runs_dir={folder}"]
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / f"compiled-{folder.name.split('-')[0]}"),
    }
    return subprocess.Popen(
        [*command, *options.overrides],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, [core]),
    )


def _speed(run: Path, seconds: int) -> float:
    """Return the tokens/s after the first quarter of the budget."""
    steps = [json.loads(line) for line in (run / "trace.jsonl").open()]
    late = [step for step in steps if step["elapsed"] >= seconds / 4]
    return (late[-1]["tokens"] - late[0]["tokens"]) / (late[-1]["elapsed"] - late[0]["elapsed"])


if __name__ == "__main__":
    main()
