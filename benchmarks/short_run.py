"""A run of a few steps for the benchmarks, built as by `cram train`, without evaluation, checkpoints and report."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from cram_composer.train.session import Session

# All steps are alike, without evaluations, checkpoints or progress output in between.
STEADY = [
    "algorithms.batch_size_ramp=null",
    "algorithms.seq_length_warmup=null",
    "eval.interval=0",
    "checkpoint.interval=1d",
    "export.enabled=false",
    "logging.progress_bar=false",
]
REPOSITORY = Path(__file__).parents[1]


def arguments(text: str | None, steps: int, rounds: int) -> argparse.ArgumentParser:
    """Build the parser of a benchmark that alternates blocks of steps; `steps` and `rounds` are defaults."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yaml", default="yamls/cram-cpu.yaml")
    parser.add_argument("--steps", type=int, default=steps, help="steps per block")
    parser.add_argument("--rounds", type=int, default=rounds, help="blocks per side")
    parser.add_argument("overrides", nargs="*", help="key=value, overrides the YAML")
    return parser


def build_run(yaml: str, settings: Sequence[str], folder: Path) -> tuple[Session, float]:
    """Build a run in `folder`, whose `trainer.fit()` trains without final evaluation and checkpoint.

    Returns:
        The run, and the resident memory in MiB after the imports and before the build.
    """
    from cram_composer.config import compose
    from cram_composer.config.schema.run import RunConfig
    from cram_composer.config.validation.run import check_run
    from cram_composer.device import choose_device
    from cram_composer.runs.folder import RunFolder
    from cram_composer.train.build import build

    composed = compose(RunConfig, yaml, list(settings))
    check_run(composed.config, int(os.environ.get("WORLD_SIZE", "1")))
    device = choose_device(composed.config, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    before = resident()
    return build(composed, device, RunFolder(folder), None), before


def resident(peak: bool = False) -> float:
    """Return the resident memory of this process in MiB, now or at its peak."""
    if peak:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(run: Session, before: float) -> float:
    """Return the peak memory in MiB: allocated on a GPU, or on a CPU the growth of resident memory since `before`."""
    import torch

    if run.device.name == "gpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resident(peak=True) - before


def step_by_hand(
    model: Callable[..., Any],
    optimizer: torch.optim.Optimizer,
    microbatches: Sequence[dict[str, torch.Tensor]],
    run: Session,
    no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Take one step in plain PyTorch; `no_sync` is DDP's, used for all microbatches except the last."""
    import torch

    autocasts = run.device.name == "gpu" and run.device.precision == "bf16"  # on a CPU the model autocasts itself
    for number, part in enumerate(microbatches, 1):
        with no_sync() if number < len(microbatches) else nullcontext():
            with torch.autocast("cuda", torch.bfloat16) if autocasts else nullcontext():
                loss = model(part).loss / len(microbatches)
            loss.backward()
    clipping = run.config.algorithms.gradient_clipping
    if clipping is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clipping.clipping_threshold)
    optimizer.step()
    optimizer.zero_grad()


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Format median, minimum and maximum."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def in_a_process(module: str, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run `python -m MODULE ARGUMENTS OUTPUT`; return the content of the file OUTPUT. Exits on failure."""
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "output"
        command = [sys.executable, "-m", module, *arguments, str(output)]
        result = subprocess.run(
            command, capture_output=True, text=True, cwd=REPOSITORY, env={**os.environ, **(environment or {})}
        )
        if result.returncode != 0 or not output.exists():
            raise SystemExit(f"{' '.join(command)}: {result.stdout[-2000:]}{result.stderr[-2000:]}")
        return output.read_text()
