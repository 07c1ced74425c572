"""Learning-rate schedules: pure functions of budget progress in [0, 1] to a factor of the peak rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict

from cram_composer.config.optimizer_schema import ScheduleConfig
from cram_composer.errors import ConfigError

Schedule = Callable[[float], float]


def _line(x: float, x0: float, y0: float, x1: float, y1: float) -> float:
    """The line through (x0, y0) and (x1, y1), flat outside; a jump when x0 == x1."""
    if x >= x1:
        return y1
    return y0 if x <= x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _half_cosine(x: float, x0: float, y0: float, x1: float, y1: float) -> float:
    """Half a cosine from (x0, y0) to (x1, y1), flat at both ends."""
    return y0 + (y1 - y0) * 0.5 * (1.0 - math.cos(math.pi * _line(x, x0, 0.0, x1, 1.0)))


def triangle(p: float, *, start: float = 0.25, peak_at: float = 0.75, final: float = 0.0) -> float:
    """Rise in a line to the peak, then fall in a line (Cramming, arXiv 2212.14034, section 4.3, figure 2)."""
    return _line(p, 0.0, start, peak_at, 1.0) if p < peak_at else _line(p, peak_at, 1.0, 1.0, final)


def one_cycle(p: float, *, start: float = 0.04, peak_at: float = 0.3, final: float = 0.0) -> float:
    """Cosine up to the peak, cosine down (Smith and Topin 2018, arXiv 1708.07120, with cosine annealing)."""
    return _half_cosine(p, 0.0, start, peak_at, 1.0) if p < peak_at else _half_cosine(p, peak_at, 1.0, 1.0, final)


def linear(p: float, *, start: float = 0.0, warmup: float = 0.06, final: float = 0.0) -> float:
    """Linear warmup, then a line to `final` (BERT's schedule, arXiv 1810.04805, appendix A.2)."""
    return _line(p, 0.0, start, warmup, 1.0) if p < warmup else _line(p, warmup, 1.0, 1.0, final)


def cosine(p: float, *, start: float = 0.0, warmup: float = 0.06, final: float = 0.0) -> float:
    """Linear warmup, then half a cosine to `final` (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5)."""
    return _line(p, 0.0, start, warmup, 1.0) if p < warmup else _half_cosine(p, warmup, 1.0, 1.0, final)


def constant(p: float, *, start: float = 0.0, warmup: float = 0.0) -> float:
    """The peak rate throughout, after an optional linear warmup."""
    return _line(p, 0.0, start, warmup, 1.0)


def inverse_sqrt(
    p: float, *, start: float = 0.0, warmup: float = 0.06, decay: float = 0.0, final: float = 0.0
) -> float:
    """Linear warmup, then sqrt(warmup / p) (Vaswani et al. 2017, arXiv 1706.03762, eq. 3), ending in an optional
    linear decay over the last `decay` of the budget (Zhai et al. 2022, arXiv 2106.04560, section 3.5)."""
    if p < warmup:
        return _line(p, 0.0, start, warmup, 1.0)
    # Without a warmup the root has no scale of its own; 1 % of the budget is then its unit.
    unit = warmup or 0.01
    turn = 1.0 - decay
    rate = min(1.0, math.sqrt(unit / max(min(p, turn), unit)))
    return _line(p, turn, rate, 1.0, final) if decay and p > turn else rate


def wsd(p: float, *, start: float = 0.0, warmup: float = 0.05, decay: float = 0.2, final: float = 0.0) -> float:
    """Warmup, stable, linear decay (Hu et al. 2024, arXiv 2404.06395, section 4)."""
    return _line(p, 0.0, start, warmup, 1.0) if p < warmup else _line(p, 1.0 - decay, 1.0, 1.0, final)


SCHEDULES: dict[str, Callable[..., float]] = {
    "triangle": triangle,
    "one-cycle": one_cycle,
    "linear": linear,
    "cosine": cosine,
    "constant": constant,
    "inverse-sqrt": inverse_sqrt,
    "wsd": wsd,
}


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule of `config` as a function of progress. Raises ConfigError for a key that it does not read."""
    function = SCHEDULES[config.name]
    given = {key: value for key, value in asdict(config).items() if key != "name" and value is not None}
    reads = set(function.__kwdefaults__ or {})
    for key in sorted(given.keys() - reads):
        raise ConfigError(
            f"schedule.{key}: the schedule '{config.name}' has no '{key}'; it reads {', '.join(sorted(reads))} "
            f"(write schedule.{key}=null to take it back)"
        )
    if given.get("warmup", 0.0) + given.get("decay", 0.0) > 1.0:
        raise ConfigError("schedule: warmup and decay together are longer than the budget")

    def schedule(progress: float) -> float:
        return function(min(max(progress, 0.0), 1.0), **given)

    return schedule


def ramp(progress: float, start: float, end: float, until: float) -> float:
    """A value that moves in a line from `start` to `end` while progress goes from 0 to `until`, then stays."""
    return _line(progress, 0.0, start, until, end)
