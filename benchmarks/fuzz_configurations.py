"""Random configurations, each trained for one step: a run trains, or ends with one line and leaves nothing behind.

python -m benchmarks.fuzz_configurations --count 300 --seed 0 data.local=DATA

Configurations are drawn from the schema: usual values, values from anywhere in the allowed range, and nonsense. Every
run is a process of its own with limits on address space and time. The exit status is 1 if any run did anything else.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from cram_composer.config.schema.introspect import item_types, literals, members, sections, tag
from cram_composer.config.schema.run import RunConfig

BASE = [
    "device=cpu",
    "budget={wall: null, steps: 1}",
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "train.batch_size=32",
    "train.device_train_microbatch_size=16",
    "train.compile=off",
    "train.threads=1",
    "eval.interval=0",
    "eval.rows=32",
    "eval.final_rows=32",
    "eval.batch_size=16",
    "data.num_workers=0",
    "logging.tensorboard=false",
    "logging.progress_bar=false",
    "export.enabled=false",
]
# Only nonsense is drawn for these: they name files and servers, or make a run long.
_SPECIAL = ("budget", "data.", "runs_dir", "runs_remote", "run_name", "recipes", "logging.", "train.compile")
_DRAWN_IN_DATA = ("data.order", "data.prefetch", "data.num_workers", "data.verify")
_NONSENSE = [
    "", "''", "???", "null", "[]", "[[]]", "{}", "{a: 1}", "true", "-1", "0", "0.5", "1e400", ".nan", ".inf", "-.inf",
    "99999999999999999999999", "text", "~nouser", "${nope}", "${seed}", "'é\\n'", "[1, 2, 3]", "[", "0x7f", "1e-400",
]  # fmt: skip
_ADDRESS_SPACE = 12 << 30
_SECONDS = 120


def keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key of the schema with its field, and sections with a `name` under each name."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        inner = sections(field.annotation)
        if not inner:
            yield key, field
        for one in inner:
            yield from (
                ((f"{key}:{tag(one)}{rest[len(key) :]}", f) for rest, f in keys(one, f"{key}."))
                if len(inner) > 1
                else keys(one, f"{key}.")
            )


def draw(rng: random.Random) -> list[str]:
    """Draw the overrides of one configuration."""
    found: dict[str, str] = {}
    everything = list(keys())
    for key, field in rng.sample(everything, rng.randint(1, 6)):
        path, _, rest = key.partition(":")
        name, _, last = rest.partition(".")
        if name:  # an optimizer or a schedule
            found[f"{path}.name"] = name
            key = f"{path}.{last}"
        special = key.startswith(_SPECIAL) and not key.startswith(_DRAWN_IN_DATA)
        if special and rng.random() < 0.5:
            continue
        value = rng.choice(_NONSENSE) if special or rng.random() < 0.1 else _value(rng, field)
        if key.endswith(".name") and name:
            continue
        found[key] = value
    if rng.random() < 0.05:
        found[f"{rng.choice(everything)[0].partition(':')[0]}.{rng.choice(['0', 'x', 'a.b'])}"] = "1"
    return [f"{key}={value}" for key, value in found.items()]


def _value(rng: random.Random, field: Any) -> str:
    annotation = field.annotation
    if choices := literals(annotation):
        return str(rng.choice(choices))
    kinds = members(annotation)
    if bool in kinds:
        return rng.choice(["true", "false"])
    if int in kinds or float in kinds:
        return _number(rng, field, int in kinds)
    if any(get_origin(kind) is tuple for kind in kinds):
        count = next(len(get_args(kind)) for kind in kinds if get_origin(kind) is tuple)
        return str([round(rng.choice([0.0, 0.5, 0.9, 0.999, 1.0]), 3) for _ in range(count)])
    if any(get_origin(kind) is list for kind in kinds) and float in item_types(annotation):
        return str([round(rng.random(), 2) for _ in range(rng.randint(0, 3))])
    return rng.choice([*_NONSENSE, "10s", "1h", "50mb"])


def _number(rng: random.Random, field: Any, whole: bool) -> str:
    """Draw a number near the default, anywhere in the range, or at its ends and beyond."""
    low, high = 0.0, 1e12
    for limit in field.metadata:
        low = float(limit.ge if isinstance(limit, Ge) else limit.gt if isinstance(limit, Gt) else low)
        high = float(limit.le if isinstance(limit, Le) else limit.lt if isinstance(limit, Lt) else high)
    default = field.get_default(call_default_factory=True)
    kind = rng.random()
    if kind < 0.6:
        usual = default if isinstance(default, (int, float)) and default else max(low, min(high, 1.0))
        value = usual * rng.choice([0.125, 0.25, 0.5, 1.0, 2.0, 4.0])
    elif kind < 0.8:
        value = math.exp(rng.uniform(math.log(max(low, 1e-9)), math.log(max(high, 1e-8))))
    else:
        value = rng.choice([low, high, low - 1, high * 2, -value if (value := high) else -1])
    return str(int(value)) if whole else repr(value)


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first configuration")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("data", help="data.local=DATA, and further overrides", nargs="+")
    options = parser.parse_args()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cram_composer.train.loop", "cram_composer.cli"])
    counts: Counter[str] = Counter()
    numbers = range(options.first, options.first + options.count)
    drawn = [draw(random.Random(f"{options.seed} {number}")) for number in numbers]
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = pool.map(lambda overrides: _try(context, [*BASE, *options.data, *overrides]), drawn)
        for number, overrides, (outcome, text) in zip(numbers, drawn, outcomes, strict=True):
            counts[outcome] += 1
            print(f"{number} {outcome}: {json.dumps(overrides, ensure_ascii=False)}\n    {text}", flush=True)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
    return int(bool(counts.keys() - {"trained", "refused"}))


def _try(context: Any, overrides: list[str]) -> tuple[str, str]:
    """Train with these overrides in a process; return the outcome and the last line of its errors."""
    with tempfile.TemporaryDirectory(prefix="cram-fuzz-") as scratch:
        work, out = Path(scratch) / "work", Path(scratch) / "out"
        work.mkdir()
        out.mkdir()
        process = context.Process(target=_train, args=(overrides, work, out))
        started = time.monotonic()
        process.start()
        process.join(_SECONDS)
        if process.exitcode is None:
            process.kill()
            process.join()
            return "TIMEOUT", f"after {_SECONDS} s"
        lines = (out / "stderr").read_text(errors="replace").splitlines()
        left = sorted(str(path.relative_to(work)) for path in work.rglob("*"))
        text = f"{lines[-1] if lines else ''} ({time.monotonic() - started:.1f} s)"
        if process.exitcode == 0:
            return "trained", text
        if process.exitcode == 2 and len(lines) == 1 and lines[0].startswith("error: "):
            return ("refused", text) if not left else ("LEFT FILES", f"{text} {left[:5]}")
        return f"STATUS {process.exitcode}, {len(lines)} lines", "\n    ".join(lines[-12:])


def _train(overrides: list[str], work: Path, out: Path) -> None:
    """Train in this process, with standard output and errors in files."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(out / name, os.O_WRONLY | os.O_CREAT), number)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    os.chdir(work)
    from cram_composer.cli import main as cram

    sys.exit(cram(["train", "yamls/cram-cpu.yaml", *overrides]))


if __name__ == "__main__":
    sys.exit(main())
