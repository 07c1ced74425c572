"""Tokens/s of training compared with a `transformers` Trainer and its BERT of the same sizes, alternating.

python -m benchmarks.transformers_trainer data.local=DATA
python -m benchmarks.transformers_trainer --rounds 5 data.local=DATA model.hidden_size=256 model.num_attention_heads=4

Every round runs four sides, each in its own process: a run of `cram train` with CramBERT, the same with transformers'
BERT (`model.architecture=hf`), and the Trainer with that BERT, with and without `torch_compile`. All use the same rows,
batch size, microbatch size, precision and threads. The Trainer masks with transformers' collator and uses torch's fused
AdamW. Speeds use the median step after the first ten.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.short_run import STEADY, build_run, in_a_process, spread

if TYPE_CHECKING:
    from cram_composer.train.session import Session

_WARM_UP = 10
_SIDES = ("CramBERT here", "BERT here", "BERT, Trainer", "BERT, Trainer, compiled")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--yaml", default="yamls/cram-cpu.yaml")
    parser.add_argument("--hf-yaml", default="benchmarks/bert.yaml", help="YAML of the run with transformers' BERT")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="key=value, overrides both YAMLs: model sizes, data, batch")
    options = parser.parse_args()
    found: dict[str, list[float]] = {side: [] for side in _SIDES}
    for number in range(options.rounds):
        for side in _SIDES if number % 2 == 0 else reversed(_SIDES):
            yaml = options.yaml if side == "CramBERT here" else options.hf_yaml
            answer = in_a_process(
                "benchmarks.transformers_trainer", "side", side, yaml, str(options.steps), *options.overrides
            )
            found[side].append(json.loads(answer))
        print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    best = [max(pair) for pair in zip(found["BERT, Trainer"], found["BERT, Trainer, compiled"], strict=True)]
    print("| side | tokens/s | relative to faster Trainer |\n| --- | --- | --- |")
    for side, rates in found.items():
        ratios = [rate / other for rate, other in zip(rates, best, strict=True)]
        print(f"| {side} | {statistics.median(rates):,.0f} | {spread(ratios)} |")


def _tokens_per_second(side: str, yaml: str, steps: int, settings: list[str]) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        budget = f"budget={{wall: null, steps: {steps}}}"
        run, _ = build_run(yaml, [*STEADY, budget, *settings], Path(scratch) / "run")
        if side.endswith("here"):
            from cram_composer.budget.trace import read_trace

            run.trainer.fit()
            seconds = [step.step_seconds for step in read_trace(run.folder.path)]
        else:
            seconds = _trainer(run, steps, compiled=side.endswith("compiled"), scratch=scratch)
        tokens = run.config.train.batch_size * run.data.manifest["sequence_length"]
        return tokens / statistics.median(seconds[_WARM_UP:])


def _trainer(run: Session, steps: int, compiled: bool, scratch: str) -> list[float]:
    """Train with a Trainer on the rows, model sizes and settings of `run`; return the seconds of every step."""
    from transformers import TrainerCallback

    ends = [0.0]

    class Clock(TrainerCallback):
        """Callback that records the end of each step."""

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            ends.append(time.perf_counter())

    trainer = build_trainer(run, scratch, Clock(), max_steps=steps, torch_compile=compiled)
    trainer.train()
    return [after - before for before, after in itertools.pairwise(ends)]


def build_trainer(run: Session, scratch: str, callback: Any, *, max_steps: int, **changes: Any) -> Any:
    """Return a Trainer with a new model, and with the rows, model sizes and settings of `run`.

    Args:
        scratch: folder for its files.
        changes: further fields of TrainingArguments.
    """
    import torch
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainingArguments,
    )

    train, optimizer = run.config.train, run.config.optimizer
    clipping = run.config.algorithms.gradient_clipping
    rows = run.batches.loader.stream.take(max_steps * train.batch_size).astype("int64")
    betas = optimizer.betas or [0.9, 0.999]
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=max_steps,
        per_device_train_batch_size=train.device_train_microbatch_size,
        gradient_accumulation_steps=train.batch_size // train.device_train_microbatch_size,
        learning_rate=optimizer.lr,
        adam_beta1=betas[0],
        adam_beta2=betas[1],
        weight_decay=optimizer.weight_decay or 0.0,
        max_grad_norm=clipping.clipping_threshold if clipping is not None else 0.0,
        optim="adamw_torch_fused",
        bf16=run.device.precision == "bf16",
        use_cpu=run.device.name == "cpu",
        dataloader_num_workers=run.config.data.num_workers,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=run.config.seed,
        **changes,
    )
    torch.manual_seed(run.config.seed)
    # A new model, because the run's model has been compiled and moved.
    return Trainer(
        AutoModelForMaskedLM.from_config(run.setup.model.model.config),
        arguments,
        train_dataset=_Rows(rows),  # type: ignore[arg-type]
        data_collator=DataCollatorForLanguageModeling(
            AutoTokenizer.from_pretrained(run.data.tokenizer),
            mlm_probability=run.config.objective.mlm_probability,
        ),
        callbacks=[callback],
    )


class _Rows:
    """Rows in the format of the Trainer."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {"input_ids": self._rows[at]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["side"]:
        _, _, side, yaml, steps, *settings, output = sys.argv
        Path(output).write_text(json.dumps(_tokens_per_second(side, yaml, int(steps), settings)))
    else:
        main()
