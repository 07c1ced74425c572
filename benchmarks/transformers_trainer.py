"""Tokens/s of training beside a `transformers` Trainer with its own BERT of the same sizes, in turns.

python -m benchmarks.transformers_trainer data.local=DATA
python -m benchmarks.transformers_trainer --rounds 5 data.local=DATA model.hidden_size=256 model.num_attention_heads=4

Four sides, each in a process of its own in every round: a run as `cram train` makes it with CramBERT, the same with
transformers' BERT (`model.architecture=hf`), and the Trainer with that BERT as it is and with `torch_compile`. All read
the same rows, with the same number of them in a step and a microbatch, and the same precision and threads; the Trainer
masks with transformers' own collator and steps with torch's fused AdamW. Speeds are from the median of the steps after
the first ten.
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
    parser.add_argument("--hf-yaml", default="benchmarks/bert.yaml", help="of the run with transformers' BERT")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="key=value, above both YAMLs: sizes of the model, data, batch")
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
    print("| side | tokens/s | beside the faster Trainer |\n| --- | --- | --- |")
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
    """Seconds of every step of a Trainer, with the rows, the model's sizes and the settings of `run`."""
    import torch
    from transformers import (
        AutoModelForMaskedLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    train, optimizer = run.config.train, run.config.optimizer
    clipping = run.config.algorithms.gradient_clipping
    ends = [0.0]

    class Clock(TrainerCallback):
        """When steps end."""

        def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
            ends.append(time.perf_counter())

    rows = run.batches.loader.stream.take(steps * train.batch_size).astype("int64")
    betas = optimizer.betas or [0.9, 0.999]
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=steps,
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
        torch_compile=compiled,
        dataloader_num_workers=run.config.data.num_workers,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        seed=run.config.seed,
    )
    # Made anew: the run's own has been compiled and moved.
    trainer = Trainer(
        AutoModelForMaskedLM.from_config(run.setup.model.model.config),
        arguments,
        train_dataset=_Rows(rows),  # type: ignore[arg-type]
        data_collator=DataCollatorForLanguageModeling(
            AutoTokenizer.from_pretrained(run.data.tokenizer),
            mlm_probability=run.config.objective.mlm_probability,
        ),
        callbacks=[Clock()],
    )
    torch.manual_seed(run.config.seed)
    trainer.train()
    return [after - before for before, after in itertools.pairwise(ends)]


class _Rows:
    """Rows as the Trainer takes them."""

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
