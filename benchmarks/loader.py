"""Compare the speed of the data loader with torch's DataLoader and transformers' masking collator, in alternation.

python -m benchmarks.loader data.local=DATA
python -m benchmarks.loader --rounds 5 data.local=DATA data.num_workers=0 train.batch_size=256

Both deliver masked batches of the same rows. This project's loader reads blocks of rows from MDS shards on disk in
other processes, shuffles and masks them. torch's DataLoader takes single rows of an array in memory in random order,
with the same number of processes. No model is trained; benchmarks/training.py measures the wait for data in training.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForLanguageModeling

from benchmarks.short_run import STEADY, build_run, spread

_ROWS = 16384  # rows in memory for torch's DataLoader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yaml", default="yamls/cram-cpu.yaml")
    parser.add_argument("--seconds", type=float, default=3.0, help="seconds per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="key=value, overrides of the YAML")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run, _ = build_run(options.yaml, [*STEADY, *options.overrides], Path(scratch) / "run")
        ours = iter(run.batches.loader)
        rows = run.batches.loader.stream.take(_ROWS).astype(np.int64)
        theirs = _endless(
            DataLoader(
                [{"input_ids": row} for row in rows],  # type: ignore[arg-type]
                batch_size=run.config.train.batch_size,
                shuffle=True,
                num_workers=run.config.data.num_workers,
                collate_fn=DataCollatorForLanguageModeling(
                    AutoTokenizer.from_pretrained(run.data.tokenizer),
                    mlm_probability=run.config.objective.mlm_probability,
                ),
            )
        )
        rates: list[tuple[float, float]] = []
        for side in (ours, theirs):
            next(side)  # starts the processes
        for _ in range(options.rounds):
            rates.append((_rate(ours, options.seconds), _rate(theirs, options.seconds)))
    mine, other = zip(*rates, strict=True)
    ratios = [a / b for a, b in rates]
    print(
        f"{statistics.median(mine):,.0f} tokens/s, DataLoader {statistics.median(other):,.0f}: {spread(ratios)} times"
    )


def _endless(loader: DataLoader) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _rate(batches: Iterator[Any], seconds: float) -> float:
    tokens, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        tokens += next(batches)["input_ids"].numel()
    return tokens / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
