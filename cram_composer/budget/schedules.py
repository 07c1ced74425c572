"""Learning-rate schedules: pure functions from budget progress in [0, 1] to a factor of the peak rate.

All schedules of Cramming are included (arXiv 2212.14034, figure 2; cramming/backend/optimizers/schedulers.py of its
code), some under other names. Its one-cycle is `triangle` with start 0 and peak_at 0.5, its ramp is `triangle` with a
late peak, and its trapezoid and dives are `wsd`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from cram_composer.config.schema.schedule import ScheduleConfig

Schedule = Callable[[float], float]


def _line(x: float, x0: float, y0: float, x1: float, y1: float) -> float:
    """Interpolate linearly from (x0, y0) to (x1, y1), constant outside; a jump if x0 == x1."""
    if x >= x1:
        return y1
    return y0 if x <= x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def _half_cosine(x: float, x0: float, y0: float, x1: float, y1: float) -> float:
    """Interpolate from (x0, y0) to (x1, y1) along half a cosine, constant outside."""
    return y0 + (y1 - y0) * 0.5 * (1.0 - math.cos(math.pi * _line(x, x0, 0.0, x1, 1.0)))


def triangle(p: float, *, start: float, peak_at: float, final: float) -> float:
    """Rise linearly to the peak, then fall linearly (Cramming, arXiv 2212.14034, section 4.3, figure 2)."""
    return _line(p, 0.0, start, peak_at, 1.0) if p < peak_at else _line(p, peak_at, 1.0, 1.0, final)


def one_cycle(p: float, *, start: float, peak_at: float, final: float) -> float:
    """Rise to the peak along half a cosine and fall along another (Smith and Topin 2018, arXiv 1708.07120)."""
    return _half_cosine(p, 0.0, start, peak_at, 1.0) if p < peak_at else _half_cosine(p, peak_at, 1.0, 1.0, final)


def linear(p: float, *, start: float, warmup: float, final: float) -> float:
    """Warm up linearly, then decay linearly to `final` (BERT's schedule, arXiv 1810.04805, appendix A.2)."""
    return _line(p, 0.0, start, warmup, 1.0) if p < warmup else _line(p, warmup, 1.0, 1.0, final)


def polynomial(p: float, *, start: float, warmup: float, power: float, final: float) -> float:
    """Warm up linearly, then decay as (1 - q)^power, q from 0 to 1 ("budget-polynomial" of the cramming code)."""
    if p < warmup:
        return _line(p, 0.0, start, warmup, 1.0)
    return final + (1.0 - final) * _line(p, warmup, 1.0, 1.0, 0.0) ** power


def cosine(p: float, *, start: float, warmup: float, final: float) -> float:
    """Warm up linearly, then decay along half a cosine to `final` (Loshchilov and Hutter, arXiv 1608.03983, eq. 5)."""
    return _line(p, 0.0, start, warmup, 1.0) if p < warmup else _half_cosine(p, warmup, 1.0, 1.0, final)


def cosine_restarts(p: float, *, start: float, warmup: float, cycles: int, final: float) -> float:
    """Warm up linearly, then decay along half a cosine from the peak to `final`, `cycles` times.

    SGDR, arXiv 1608.03983, section 3, with cycles of equal length; "budget-cosine-annealing" of the cramming code.
    """
    if p < warmup:
        return _line(p, 0.0, start, warmup, 1.0)
    turn = _line(p, warmup, 0.0, 1.0, cycles)
    return final if p >= 1.0 else _half_cosine(turn % 1.0, 0.0, 1.0, 1.0, final)


def inverse_cosine(p: float, *, start: float, decay: float, final: float) -> float:
    """Rise along half a cosine until `decay` before the end of the budget, then decay linearly to `final`.

    The peak is the value where both meet ("budget-inv-cosine" of the cramming code).
    """
    turn = 1.0 - decay
    if p >= turn:
        return _line(p, turn, 1.0, 1.0, final)
    return _half_cosine(p, 0.0, start, 1.0, 1.0) / _half_cosine(turn, 0.0, start, 1.0, 1.0)


def multi_cycle(p: float, *, start: float, cycles: int, final: float) -> float:
    """Rise from `start` and fall back to it linearly, `cycles` times; the last cycle falls to `final`.

    Cyclical learning rates, Smith 2017, arXiv 1506.01186; "budget-multi-cycle" of the cramming code.
    """
    cycle = min(int(p * cycles), cycles - 1)
    return triangle(p * cycles - cycle, start=start, peak_at=0.5, final=final if cycle == cycles - 1 else start)


def constant(p: float, *, start: float, warmup: float) -> float:
    """Hold the peak rate after an optional linear warmup."""
    return _line(p, 0.0, start, warmup, 1.0)


def inverse_sqrt(p: float, *, start: float, warmup: float, decay: float, final: float) -> float:
    """Warm up linearly, then decay as sqrt(warmup / p) (Vaswani et al. 2017, arXiv 1706.03762, eq. 3).

    The last `decay` of the budget is an optional linear decay (Zhai et al. 2022, arXiv 2106.04560, section 3.5).
    """
    if p < warmup:
        return _line(p, 0.0, start, warmup, 1.0)
    # Without a warmup, 1 % of the budget sets the scale of the root.
    unit = warmup or 0.01
    turn = 1.0 - decay
    rate = min(1.0, math.sqrt(unit / max(min(p, turn), unit)))
    return _line(p, turn, rate, 1.0, final) if decay and p > turn else rate


def wsd(
    p: float,
    *,
    start: float,
    warmup: float,
    decay: float,
    decay_shape: str,
    final: float,
) -> float:
    """Warm up linearly, stay at the peak, then decay.

    Warmup-stable-decay of Hu et al. 2024, arXiv 2404.06395, section 4; the trapezoid of the cramming code.

    With `decay_shape="1-sqrt"` the decay is 1 - sqrt(q), with q from 0 to 1, which is steepest at the start (Haegele et
    al. 2024, arXiv 2405.18392, section 3).
    """
    if p < warmup:
        return _line(p, 0.0, start, warmup, 1.0)
    share = _line(p, 1.0 - decay, 0.0, 1.0, 1.0)
    return 1.0 + (final - 1.0) * (math.sqrt(share) if decay_shape == "1-sqrt" else share)


SCHEDULES: dict[str, Callable[..., float]] = {
    "triangle": triangle,
    "one-cycle": one_cycle,
    "linear": linear,
    "polynomial": polynomial,
    "cosine": cosine,
    "cosine-restarts": cosine_restarts,
    "inverse-cosine": inverse_cosine,
    "multi-cycle": multi_cycle,
    "constant": constant,
    "inverse-sqrt": inverse_sqrt,
    "wsd": wsd,
}


def build_schedule(config: ScheduleConfig) -> Schedule:
    """Return the schedule of `config` as a function of progress, which is clamped to [0, 1]."""
    function, settings = SCHEDULES[config.name], config.model_dump(exclude={"name"})
    return lambda progress: function(min(max(progress, 0.0), 1.0), **settings)


def ramp(progress: float, start: float, end: float, until: float) -> float:
    """Interpolate linearly from `start` at progress 0 to `end` at progress `until`, then stay at `end`."""
    return _line(progress, 0.0, start, until, end)
