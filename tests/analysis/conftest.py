"""Synthetic run folders in the format of real runs: finished, resumed after a kill, or running."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MakeRun = Callable[..., Path]

CONFIG = {
    "recipes": ["crammed-bert", "seq-length-warmup"],
    "budget": "600s",
    "seed": 17,
    "model": {"hidden_size": 256, "num_hidden_layers": 4, "vocab_size": 32768, "tie_word_embeddings": True},
    "optimizer": {"name": "adamw", "lr": 1.0e-3, "betas": [0.9, 0.98], "eps": 1.0e-12, "weight_decay": 0.01},
    "data": {"path": "cache/starter", "remote": None, "num_workers": 0},
    "algorithms": {"gradient_clipping": {"threshold": 0.5}, "ema": {}},
}
PROVENANCE = {
    "recipes": "yamls/cram-cpu.yaml",
    "budget": "command line",
    "seed": "default",
    "model.hidden_size": "yamls/cram-cpu.yaml",
    "model.num_hidden_layers": "yamls/cram-cpu.yaml",
    "model.vocab_size": "default",
    "model.tie_word_embeddings": "default",
    "optimizer": "recipe crammed-bert",
    "data.path": "default",
    "data.remote": "default",
    "data.num_workers": "default",
    "algorithms.gradient_clipping.threshold": "recipe crammed-bert",
}
DATA = {
    "format_version": 2,
    "name": "starter",
    "created_with": {"mosaicml-streaming": "0.13.0"},
    "seed": 17,
    "sequence_length": 128,
    "block_rows": 256,
    "dtype": "uint16",
    "vocab_size": 32768,
    "special_tokens": {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    "tokenizer_sha256": "5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef",
    "splits": {
        "train": {
            "documents": 24_310, "rows": 51_200, "tokens": 6_553_600, "characters": 29_400_000,
            "blocks": 200, "bytes": 13_107_200, "unk_tokens": 131,
        },
        "validation": {
            "documents": 256, "rows": 512, "tokens": 65_536, "characters": 294_000,
            "blocks": 2, "bytes": 131_072, "unk_tokens": 0,
        },
    },
    "sources": [
        {"name": "speeches", "kind": "package", "documents": 240, "characters": 10_400_000, "licence": "public domain"},
        {"name": "leads", "kind": "hub", "revision": "c0ffee", "documents": 24_070, "characters": 19_000_000},
    ],
    "unigram_validation_nats": 6.914,
}  # fmt: skip
ENVIRONMENT = {
    "git_revision": "0123abcd" * 5,
    "python": "3.11.7",
    "platform": "Linux-6.1-x86_64",
    "cpu": "AMD EPYC 9654 96-Core Processor",
    "cpu_count": 2,
    "gpus": [],
    "libraries": {"torch": "2.7.0", "mosaicml": "0.32.1", "mosaicml-streaming": "0.13.0", "transformers": "4.53.3"},
}
COMPILE_SHARE = 0.045  # of the budget, at every compilation
FILLS = [
    {"sentence": "The president of the united [MASK] spoke.", "predictions": [["states", 0.912], ["nations", 0.041]]},
    {"sentence": "She was born in [MASK] 1950.", "predictions": [["early", 0.22], ["july", 0.13], ["june", 0.11]]},
]


def learning_rate(progress: float) -> float:
    """The triangle schedule with its peak of 1e-3 at 75 % of the budget."""
    return 1e-3 * (0.25 + progress) if progress < 0.75 else 1e-3 * (1 - progress) / 0.25


def trace_lines(
    budget: float, step_seconds: float, floor: float, seed: int, lost: tuple[float, float] | None = None
) -> list[dict[str, Any]]:
    """Return steps of a plausible run: compilation at each new sequence length, a batch ramp, the triangle schedule.

    `lost` = (progress of the last checkpoint, progress of the kill): steps between the two are missing, and the next
    step starts at the kill and compiles again, as after a resume.
    """
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    elapsed, tokens, compiled = 0.0, 0, set()
    while elapsed < budget:
        if lost and lost[0] * budget <= elapsed < lost[1] * budget:
            elapsed = lost[1] * budget
            compiled.clear()
        progress = elapsed / budget
        length = 64 if progress < 0.25 else 128
        batch = 32 * (1 + min(3, int(progress / 0.15)))
        tokens += batch * length
        seconds = step_seconds * batch / 128 * length / 128 * (1 + 0.04 * rng.standard_normal())
        stall = 0.003 * seconds * (1 + rng.random())
        if length not in compiled:
            compiled.add(length)
            seconds += COMPILE_SHARE * budget
        loss = floor + (10.4 - floor) * math.exp(-3.2 * (tokens / (budget / step_seconds * 12000)) ** 0.45)
        lines.append({
            "step": len(lines), "elapsed": elapsed, "progress": progress, "tokens": tokens, "batch_size": batch,
            "seq_length": length, "mlm_probability": 0.25, "lr": learning_rate(progress),
            "loss": loss + 0.12 * rng.standard_normal(), "step_seconds": seconds, "data_seconds": stall,
        })  # fmt: skip
        elapsed += seconds
    return lines


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Write a run folder and return it; further keyword arguments replace parts of the record."""

    def make(
        name: str = "cram-cpu",
        *,
        budget: float = 600.0,
        step_seconds: float = 1.2,
        floor: float = 3.9,
        seed: int = 0,
        resumed: bool = False,
        running: bool = False,
        null_losses: bool = False,
        **replaced: Any,
    ) -> Path:
        path = tmp_path_factory.mktemp("run")
        lines = trace_lines(budget, step_seconds, floor, seed, (0.42, 0.5) if resumed else None)
        if running:
            lines = [line for line in lines if line["progress"] < 0.4]
        steps = lines[-1]["step"] + 1
        attempts = [{"started_at_step": 0, "ended_at_step": steps, "reason": "finished"}]
        lost = 0.0
        if resumed:
            restart = next(line["step"] for line in lines if line["progress"] >= 0.5)
            lost = lines[restart]["elapsed"] - lines[restart - 1]["elapsed"] - lines[restart - 1]["step_seconds"]
            attempts[0] |= {"ended_at_step": restart, "reason": "killed"}
            attempts.append({"started_at_step": restart, "ended_at_step": steps, "reason": "finished"})
        evaluations = [
            {"step": line["step"], "elapsed": line["elapsed"] + line["step_seconds"], "tokens": line["tokens"],
             "eval/loss": line["loss"] - 0.1, "eval/accuracy": 0.31}
            for line in lines[steps // 8 :: max(1, steps // 8)]
        ]  # fmt: skip
        if null_losses:
            lines = [{**line, "loss": None} if line["step"] % 3 == 0 else line for line in lines]
        end = lines[-1]["elapsed"] + lines[-1]["step_seconds"]
        spent = {
            "compile": (3 if resumed else 2) * COMPILE_SHARE * budget,
            "data": 2.6,
            "eval": 9.5,
            "checkpoint": 3.1,
            "lost": lost,
        }
        inside = {"compile": spent["compile"], "train": end - sum(spent.values()), **spent}
        finished = not running
        record = {
            "format_version": 2,
            "run_name": name,
            "status": "finished" if finished else "running",
            "reason": None,
            "recipes": CONFIG["recipes"],
            "config": CONFIG,
            "provenance": PROVENANCE,
            "config_hash": "9c1185a5c5e9fc54612808977ee8f548b2258d31",
            "environment": ENVIRONMENT,
            "world_size": 1,
            "parameters": 12_345_678,
            "kernels": {"attention": "torch sdpa", "layernorm": "torch", "precision": "bf16", "compile": "regional"},
            "data": DATA,
            "budget": {"mode": "wall", "seconds": budget},
            "steps": steps,
            "tokens": lines[-1]["tokens"],
            "tokens_per_second": lines[-1]["tokens"] / end,
            "ledger": {
                "inside": inside,
                "inside_total": sum(inside.values()),
                "wall_seconds": end + 0.2,
                "outside": {"setup": 6.2, "data_build": 88.4, "final_eval": 11.0, "export": 4.1},
                "last_step_seconds": 1.2,
            },
            "energy": None,
            "metrics": {
                "train_loss_final": 4.381, "validation_loss": 4.2137, "validation_accuracy": 0.3127,
                "validation_bits_per_token": 6.0791, "fills": FILLS,
            } if finished else {},
            "attempts": attempts,
        }  # fmt: skip
        if running:  # the record dates from the start of the run; clock.json is updated every few seconds
            idle = {"inside": dict.fromkeys(inside, 0.0), "inside_total": 0.0, "wall_seconds": None}
            idle["outside"] = {"setup": 6.2, "data_build": 88.4, "final_eval": 0.0, "export": 0.0}
            record.update(steps=0, tokens=0, tokens_per_second=None, ledger={**record["ledger"], **idle})
            (path / "clock.json").write_text(json.dumps({"inside": inside, "step": steps, "clean": False}))
        record.update(replaced)
        (path / "record.json").write_text(json.dumps(record), encoding="utf-8")
        trace = "".join(json.dumps(line) + "\n" for line in lines)
        metrics = "".join(json.dumps(line) + "\n" for line in evaluations)
        if running:
            trace += '{"step": 99999, "elapsed": 23'
        (path / "trace.jsonl").write_text(trace, encoding="utf-8")
        (path / "metrics.jsonl").write_text("" if running else metrics, encoding="utf-8")
        return path

    return make


MakeSeeds = Callable[..., list[Path]]


@pytest.fixture(scope="session")
def make_seeds(make_run: MakeRun) -> MakeSeeds:
    """Write run folders with these final held-out losses and seeds 1, 2, ...; `settings` are dotted config keys."""

    def make(
        name: str,
        losses: Sequence[float],
        *,
        settings: dict[str, Any] | None = None,
        first_seed: int = 1,
        **replaced: Any,
    ) -> list[Path]:
        paths = []
        for seed, loss in enumerate(losses, start=first_seed):
            config = json.loads(json.dumps(CONFIG | {"seed": seed}))
            for key, value in (settings or {}).items():
                *sections, last = key.split(".")
                section = config
                for part in sections:
                    section = section.setdefault(part, {})
                section[last] = value
            metrics = {"validation_loss": loss, "validation_accuracy": 0.3, "validation_rows": 512}
            paths.append(make_run(f"{name}-{seed}", seed=seed, config=config, **{"metrics": metrics, **replaced}))
        return paths

    return make
