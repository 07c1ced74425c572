"""Rates of the device: matrix products of the run's sizes, and copies, beside the card's data sheet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from cram_composer.doctor.checks import Check, CheckContext
from cram_composer.models.compilation import encoder_layers
from cram_composer.planning.cards import CARDS, Card

_SECONDS = 1.0  # of timing for each rate
_COPY_BYTES = 256 << 20
_POOR = 0.5  # share of the stated rate
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def card_of(name: str) -> Card | None:
    """Return the card of the data sheets whose name is part of a device's name, the longest one first."""
    folded = name.lower().replace("-", " ")
    found = [card for card in CARDS.values() if all(word.lower() in folded.split() for word in _words(card))]
    return max(found, key=lambda card: len(card.name), default=None)


def _words(card: Card) -> list[str]:
    """Return the words of a card's name that are also in the name that its driver reports."""
    return card.name.removesuffix(" SXM 80 GB").removesuffix(" SXM").split()


def check_rates(context: CheckContext) -> Iterator[Check]:
    """Measure products and copies."""
    torch.set_num_threads(context.device.threads)
    device = torch.device("cuda" if context.device.name == "gpu" else "cpu")
    card = card_of(torch.cuda.get_device_name()) if device.type == "cuda" else None
    dtype = DTYPES[context.device.precision]
    largest = max(_linear_sizes(context), key=lambda size: size[0] * size[1])
    tokens = context.config.train.microbatch * context.spec.facts.sequence_length
    left = torch.randn(tokens, largest[1], device=device).to(dtype)
    right = torch.randn(largest[1], largest[0], device=device).to(dtype)
    rate = 2.0 * tokens * largest[0] * largest[1] / _seconds(lambda: left @ right, device)
    shape = f"{tokens:,} x {largest[1]:,} x {largest[0]:,} in {context.device.precision}"
    yield _rated("products", rate, card.flops if card else None, 1e12, f"TFLOP/s ({shape})")
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    rate = 2.0 * _COPY_BYTES / _seconds(lambda: target.copy_(source), device)
    yield _rated("copies", rate, card.bandwidth if card else None, 1e9, "GB/s read and written")


def _rated(name: str, rate: float, stated: float | None, unit: float, text: str) -> Check:
    line = f"{rate / unit:,.3g} {text}"
    values = {"rate": rate, "stated": stated}
    if stated is None:
        return Check(name, "pass", line, values)
    line = f"{line}, {rate / stated:.0%} of the stated {stated / unit:,.4g}"
    return Check(name, "warn" if rate < _POOR * stated else "pass", line, values)


def _linear_sizes(context: CheckContext) -> list[tuple[int, int]]:
    """Return outputs and inputs of the linear layers of the encoder."""
    with torch.device("meta"):
        model = context.spec.build_model().model
    layers = encoder_layers(model) or [model]
    return [
        (module.out_features, module.in_features)
        for module in layers[0].modules()
        if isinstance(module, torch.nn.Linear)
    ]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the median seconds of a call, after one that does not count."""

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    work()
    synchronize()
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until or len(taken) < 3:
        started = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
