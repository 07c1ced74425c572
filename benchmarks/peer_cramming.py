"""Tokens/s compared with the paper's code (github.com/JonasGeiping/cramming) on the paper's model, alternating.

git clone https://github.com/JonasGeiping/cramming CHECKOUT
CRAMMING_PYTHON=ENVIRONMENT/bin/python python -m benchmarks.peer_cramming CHECKOUT data.local=DATA

ENVIRONMENT has torch, transformers 4, datasets 3, evaluate, hydra-core, einops, pynvml, psutil, safetensors, zstandard,
scikit-learn and scipy. Both train crammed-bert of the same sizes on 64 rows per step. The paper's code runs its engine
with its settings (`train=bert-o4`, inductor, its precision, which is fp32 on a CPU) on one batch in memory.
cram-composer trains a whole run, including data and clock. Speeds use the median step after the first ten.
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
from types import SimpleNamespace
from typing import Any

_LAYERS, _WIDTH, _HEADS, _INTERMEDIATE = 4, 128, 2, 512
_ROWS, _LENGTH, _VOCABULARY = 64, 128, 8192
_WARM_UP = 10


def main() -> None:
    from benchmarks.short_run import in_a_process, spread

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("overrides", nargs="*", help="key=value, for cram-composer: data, microbatch")
    options = parser.parse_args()
    ours: list[float] = []
    theirs: list[float] = []
    for number in range(options.rounds):
        for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            if side is ours:
                answer = in_a_process("benchmarks.peer_cramming", "ours", str(options.steps), *options.overrides)
                side.append(json.loads(answer))
            else:
                side.append(_there(options.checkout, options.steps))
        print(f"round {number + 1}: {ours[-1]:,.0f} tokens/s, cramming {theirs[-1]:,.0f}", file=sys.stderr)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    print(f"{statistics.median(ours):,.0f} tokens/s, cramming {statistics.median(theirs):,.0f}: {spread(ratios)} times")


def _here(steps: int, settings: list[str]) -> float:
    from benchmarks.short_run import STEADY, build_run
    from cram_composer.budget.trace import read_trace

    sizes = [
        f"model.num_hidden_layers={_LAYERS}",
        f"model.hidden_size={_WIDTH}",
        f"model.num_attention_heads={_HEADS}",
        f"model.intermediate_size={_INTERMEDIATE}",
        "model.positions=scaled-sinusoidal",
        "model.embedding_norm=true",
        f"train.batch_size={_ROWS}",
    ]
    with tempfile.TemporaryDirectory() as scratch:
        budget = f"budget={{wall: null, steps: {steps}}}"
        run, _ = build_run("yamls/cram-cpu.yaml", [*STEADY, *sizes, budget, *settings], Path(scratch) / "run")
        run.trainer.fit()
        seconds = [step.step_seconds for step in read_trace(run.folder.path)]
    return _ROWS * _LENGTH / statistics.median(seconds[_WARM_UP:])


def _there(checkout: Path, steps: int) -> float:
    """Return the tokens/s of the paper's code, in its own environment."""
    return json.loads(run_cramming(checkout, "theirs", str(steps)))


def run_cramming(checkout: Path, *arguments: str) -> str:
    """Run this file in the environment of cramming, and return its last line. Exits on failure."""
    if "CRAMMING_PYTHON" not in os.environ:
        raise SystemExit("CRAMMING_PYTHON: must be a Python with the packages of cramming; see --help")
    command = [os.environ["CRAMMING_PYTHON"], __file__, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"cramming: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout.splitlines()[-1]


def _engine(overrides: list[str], tokenizer: Any, dataset: Any = None) -> tuple[Any, Any]:
    """Return an engine of the paper's code with its model, and its data loader; runs in its environment."""
    import cramming  # type: ignore[import-not-found]
    import hydra  # type: ignore[import-not-found]

    with hydra.initialize_config_module("cramming.config", version_base="1.1"):
        settings = hydra.compose(
            "cfg_pretrain",
            overrides=[
                "arch=crammed-bert",
                "train=bert-o4",
                f"arch.num_transformer_layers={_LAYERS}",
                f"arch.hidden_size={_WIDTH}",
                f"arch.intermed_size={_INTERMEDIATE}",
                f"arch.attention.num_attention_heads={_HEADS}",
                f"train.batch_size={_ROWS}",
                "train.batch_size_ramp=0",
                f"impl.microbatch_size={_ROWS}",
                *overrides,
            ],
        )
    model = cramming.construct_model(settings.arch, _VOCABULARY)
    engine, _, _, loader = cramming.load_backend(model, dataset, tokenizer, settings.train, settings.impl)
    engine.train(settings.train.pretrain_in_train_mode)
    return engine, loader


def _theirs(steps: int) -> float:
    """Measure the speed of the paper's code; runs in its environment."""
    import torch

    torch.manual_seed(0)
    engine, _ = _engine([], SimpleNamespace(model_max_length=_LENGTH))
    input_ids = torch.randint(5, _VOCABULARY, (_ROWS, _LENGTH))
    # A quarter of all tokens, because its sparse prediction requires this number.
    chosen = torch.rand(_ROWS * _LENGTH).argsort()[: _ROWS * _LENGTH // 4]
    labels = torch.full((_ROWS * _LENGTH,), -100)
    labels[chosen] = input_ids.flatten()[chosen]
    batch = {"input_ids": input_ids, "labels": labels.view(_ROWS, _LENGTH)}
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        engine.step(batch)
        seconds.append(time.perf_counter() - start)
    return _ROWS * _LENGTH / statistics.median(seconds[_WARM_UP:])


def _loss_of_theirs(folder: Path, seconds: float, seed: int) -> dict[str, float]:
    """Train the paper's code for `seconds` with its data loader and schedule, and score it; runs in its environment.

    Args:
        folder: what benchmarks/peer_losses.py wrote: a tokenizer, train rows of every seed, and masked held-out rows.
    """
    import numpy as np
    import torch
    from transformers import AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", model_max_length=_LENGTH)
    rows = [{"input_ids": row.tolist()} for row in np.load(folder / f"rows-{seed}.npy")]
    budget = [f"budget={seconds / 3600}", "impl.threads=0", "impl.pin_memory=false"]
    engine, loader = _engine(budget, tokenizer, rows)
    steps, start = 0, time.time()
    for batch in loader:
        engine.step(engine.to_device(batch))
        steps += 1
        if time.time() - start >= seconds:
            break
    model = engine.model._orig_mod.eval()
    loss = held_out_loss(folder, lambda inputs: model.decoder(model.prediction_head(model.encoder(inputs))))
    return {"loss": loss, "tokens": steps * _ROWS * _LENGTH}


def held_out_loss(folder: Path, logits: Any) -> float:
    """Return the mean cross-entropy in nats of the masked tokens of the held-out rows in `folder`.

    Args:
        logits: token ids [rows, length] -> logits [rows, length, vocabulary].
    """
    import numpy as np
    import torch

    saved = {name: torch.from_numpy(values) for name, values in np.load(folder / "held-out.npz").items()}
    total = 0.0
    with torch.no_grad():
        for ids, places, labels in zip(*(saved[n].split(64) for n in ("ids", "places", "labels")), strict=True):
            chosen = logits(ids).float()[torch.arange(len(ids))[:, None], places]
            total += float(torch.nn.functional.cross_entropy(chosen.flatten(0, 1), labels.flatten(), reduction="sum"))
    return total / saved["labels"].numel()


if __name__ == "__main__":
    if sys.argv[1:2] == ["ours"]:
        _, _, steps, *settings, output = sys.argv
        Path(output).write_text(json.dumps(_here(int(steps), settings)))
    elif sys.argv[1:2] == ["theirs"]:
        print(json.dumps(_theirs(int(sys.argv[2]))))
    elif sys.argv[1:2] == ["loss"]:
        print(json.dumps(_loss_of_theirs(Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()
