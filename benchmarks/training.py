"""Training compared with a bare loop and with the machine's fastest matrix product: speed, data stall and memory.

python -m benchmarks.training data.local=DATA
python -m benchmarks.training --vary model.hidden_size=128,256,512 data.local=DATA     # also layers, rows, length

The bare loop is ten lines of PyTorch with the same compiled model, optimizer and clipping, on batches in memory. A run
adds Composer, its callbacks, the clock and the trace, the data loader with masking, and the guard against non-finite
steps.

One process alternates a block of steps of the run with a block of the bare loop. The matrix products follow the one or
the other in alternating rounds. Each ratio compares adjacent blocks.

Model FLOPs are those of models/flops.py, relative to the fastest square matrix product in the run's dtype. Memory is
measured in one process per side: the peak growth of resident memory since before the model was built on a CPU, the peak
allocation on a GPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.short_run import STEADY, arguments, build_run, in_a_process, memory, spread, step_by_hand

if TYPE_CHECKING:
    from cram_composer.train.session import Session

_WARM_UP = 5  # steps that compile
_MATRICES = (512, 1024, 2048, 4096)
_BATCHES = 8  # cycled by the bare loop


def main() -> None:
    parser = arguments(__doc__, steps=20, rounds=7)
    parser.add_argument("--vary", metavar="KEY=A,B,...", help="measure each of these values")
    options = parser.parse_args()
    key, _, values = (options.vary or "").partition("=")
    print("| setting | tokens/s | bare loop | ratio | model FLOP/s | of matrix product | data stall | MiB | bare |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for value in values.split(",") if key else [""]:
        varied = _varied(key, value)
        given = [options.yaml, str(options.steps), str(options.rounds), *options.overrides, *varied]
        speed, ours, bare = (
            json.loads(in_a_process("benchmarks.training", f"--{side}", *given)) for side in ("turns", "ours", "bare")
        )
        print(_row(" ".join(varied) or "default", speed, ours["mib"], bare["mib"]), flush=True)


def _varied(key: str, value: str) -> list[str]:
    """Return the settings for one value; a model of another width keeps its proportions and head size 64."""
    if key == "model.hidden_size":
        width = int(value)
        return [f"{key}={width}", f"model.num_attention_heads={width // 64}", f"model.intermediate_size={4 * width}"]
    return [f"{key}={value}"] if key else []


def _row(name: str, speed: dict[str, Any], ours: float, bare: float) -> str:
    ratios = [b / a for a, b in zip(speed["ours"], speed["bare"], strict=True)]
    mine, plain = (speed["tokens"] / statistics.median(speed[side]) for side in ("ours", "bare"))
    flops, matrix = mine * speed["flops_per_token"], max(map(statistics.median, speed["matrix"].values()))
    return (
        f"| {name} | {mine:,.0f} | {plain:,.0f} | {spread(ratios, '.3f')} | {flops:.3g} | "
        f"{100 * flops / matrix:.0f} % of {matrix:.3g} | {100 * speed['stall']:.2f} % | {ours:,.0f} | {bare:,.0f} |"
    )


def _measure(side: str, yaml: str, steps: int, rounds: int, settings: list[str]) -> dict[str, Any]:
    """Measure in one process: seconds per step of each block, or memory."""
    with tempfile.TemporaryDirectory() as scratch:
        total = _WARM_UP + (steps * rounds if side == "turns" else steps)
        budget = f"budget={{wall: null, steps: {total}}}"
        run, before = build_run(yaml, [*STEADY, budget, *settings], Path(scratch) / "run")
        if side == "turns":
            return _turns(run, steps)
        if side == "ours":
            run.trainer.fit()
        else:
            step = _bare_loop(run, run.setup.model)
            for _ in range(total):
                step()
    return {"mib": memory(run, before)}


def _turns(run: Session, steps: int) -> dict[str, Any]:
    """Alternate run and bare loop; return the seconds per step of each block and the other figures of `_row`."""
    from composer.core import Callback, State
    from composer.loggers import Logger

    from cram_composer.budget.trace import read_trace
    from cram_composer.models.factory import build_model
    from cram_composer.models.training_model import build_training_model

    manifest = run.data.manifest
    network = build_model(run.config.model, manifest["vocab_size"], manifest["special_tokens"], run.config.objective)
    other = run.trainer.state.device.module_to_device(
        build_training_model(network, run.setup.model.autocast_dtype, run.device.compile)
    )
    other.use_kernels(run.config.model, run.device.name, run.device.precision)
    bare_step = _bare_loop(run, other)
    for _ in range(_WARM_UP):
        bare_step()
    products = {size: _product(run, size) for size in _MATRICES}
    ours: list[float] = []
    bare: list[float] = []
    matrix: dict[int, list[float]] = {size: [] for size in _MATRICES}

    class Turns(Callback):
        """Callback that runs the bare loop after each block of the run."""

        since: float | None = None

        def batch_checkpoint(self, state: State, logger: Logger) -> None:
            if (int(state.timestamp.batch) - _WARM_UP) % steps:
                return
            _wait(run)
            if self.since is not None:
                ours.append((time.perf_counter() - self.since) / steps)
                # The matrix products evict the data of run and bare loop from the processor's caches.
                if len(ours) % 2:
                    self.multiply()
                bare.append(_seconds(run, bare_step, steps))
                if len(ours) % 2 == 0:
                    self.multiply()
            self.since = time.perf_counter()

        def multiply(self) -> None:
            for size, product in products.items():
                times = max(1, round(2e10 / size**3))
                matrix[size].append(2 * size**3 / _seconds(run, product, times))

    run.trainer.state.callbacks.append(Turns())  # after the clock, whose reading ends a step
    run.trainer.fit()
    trace = read_trace(run.folder.path)[_WARM_UP:]
    # The first step of a block is excluded: its wait for data includes the bare loop and the matrix products.
    undisturbed = [step for at, step in enumerate(trace) if at % steps]
    stall = sum(step.data_seconds for step in undisturbed) / sum(step.step_seconds for step in undisturbed)
    tokens = (trace[-1].tokens - trace[0].tokens) / (len(trace) - 1)
    return {
        "ours": ours,
        "bare": bare,
        "matrix": matrix,
        "tokens": tokens,
        "flops_per_token": run.flops_per_token,
        "stall": stall,
    }


def _bare_loop(run: Session, model: Any) -> Callable[[], None]:
    """Build the step of the bare loop, on batches in memory."""
    from cram_composer.optim.factory import build_optimizer

    optimizer = build_optimizer(run.config.optimizer, model, run.config.model.mup_base_width)
    device = run.trainer.state.device
    batches = iter(run.batches.loader)
    ready = [
        [
            device.batch_to_device(part)
            for part in run.batches.loader.split_batch(next(batches), run.batches.loader.microbatch)
        ]
        for _ in range(_BATCHES)
    ]
    model.train()
    number = 0

    def step() -> None:
        nonlocal number
        step_by_hand(model, optimizer, ready[number % _BATCHES], run)
        number += 1

    return step


def _product(run: Session, size: int) -> Callable[[], None]:
    import torch

    dtype = torch.bfloat16 if run.device.precision == "bf16" else torch.float32
    place = "cuda" if run.device.name == "gpu" else "cpu"
    left, right = (torch.randn(size, size, device=place).to(dtype) for _ in range(2))
    out = torch.empty(size, size, dtype=dtype, device=place)

    def product() -> None:
        torch.mm(left, right, out=out)

    return product


def _seconds(run: Session, work: Callable[[], None], times: int) -> float:
    """Return the mean seconds of a call over `times` calls, including the device's work."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    _wait(run)
    return (time.perf_counter() - start) / times


def _wait(run: Session) -> None:
    import torch

    if run.device.name == "gpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("--turns", "--ours", "--bare"):
        side, yaml, steps, rounds, *settings, output = sys.argv[1:]
        Path(output).write_text(json.dumps(_measure(side.strip("-"), yaml, int(steps), int(rounds), settings)))
    else:
        main()
