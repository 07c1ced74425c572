"""Tokens per second of the bare training step on a CPU, without Composer, callbacks, data loading and clock.

python -m benchmarks.compile_modes 4x256 64 regional
python -m benchmarks.compile_modes 4x256 64 regional --precision fp32
python -m benchmarks.compile_modes 4x128 16 regional --attention sdpa --give-back     # unlike a run
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cram_composer.config.schema.model import ModelConfig
from cram_composer.config.schema.optimizer import AdamWConfig
from cram_composer.device import set_up_cpu
from cram_composer.models.factory import build_model
from cram_composer.models.training_model import MaskedLMTrainingModel
from cram_composer.optim.factory import build_optimizer

_VOCABULARY, _LENGTH, _MASKED, _STEPS = 8192, 128, 32, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="layers x hidden size, such as 4x256; the head size is 64")
    parser.add_argument("rows", type=int, help="rows of 128 tokens per microbatch")
    parser.add_argument("mode", choices=("off", "regional", "full"))
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--attention", choices=("auto", "sdpa", "eager"), default="auto")
    parser.add_argument("--give-back", action="store_true", help="return freed memory to the system")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    layers, hidden = map(int, options.size.split("x"))
    set_up_cpu(options.threads, trains_here=not options.give_back)
    torch.manual_seed(0)
    settings = ModelConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
        positions="rotary",
        embedding_norm=False,
    )
    network = build_model(settings, _VOCABULARY, {"pad": 0, "cls": 2, "sep": 3})
    model = MaskedLMTrainingModel(network, torch.bfloat16 if options.precision == "bf16" else None, options.mode)
    model.use_attention(options.attention, "cpu", options.precision)
    optimizer = build_optimizer(AdamWConfig(), model)
    batch = {
        "input_ids": torch.randint(5, _VOCABULARY, (options.rows, _LENGTH)),
        "masked_positions": torch.rand(options.rows, _LENGTH).argsort(1)[:, :_MASKED].sort(1).values,
        "labels": torch.randint(5, _VOCABULARY, (options.rows, _MASKED)),
    }

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        model(batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return time.perf_counter() - start

    first = step() + step()
    median = statistics.median(step() for _ in range(_STEPS))
    print(f"{options.rows * _LENGTH / median:,.0f} tokens/s, step {median:.3f} s, first two steps {first:.1f} s")


if __name__ == "__main__":
    main()
