"""Report of a sweep over a two-level design: effects, what they are mixed with, and a sweep to confirm them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from cram_composer.analysis.compare.comparability import comparability, find_cautions
from cram_composer.analysis.compare.effects import LENTH, Effect, Effects, contrasts, estimate_effects
from cram_composer.analysis.compare.groups import Group, make_group
from cram_composer.analysis.compare.page import Section, write_page
from cram_composer.analysis.console import table_lines
from cram_composer.analysis.html.style import Picture, house_style, series_style
from cram_composer.analysis.html.tables import Table
from cram_composer.analysis.runs.run import load_runs
from cram_composer.config.formatting import is_number, signed
from cram_composer.config.schema.sweep import SweepConfig
from cram_composer.storage.files import write_atomic
from cram_composer.sweeps.design import aliases, two_level_design
from cram_composer.sweeps.plan import Trial, merge_factors, seeds_of
from cram_composer.sweeps.progress import finished_record, unfinished_reason

REPORT = "report.html"
CONFIRM = "confirm.yaml"
_CONFIRM_SEEDS = 5
_MOST_ALIASES = 3  # interactions listed for each factor
_HEADER = ("factor", "effect, nats", "95 % interval", "", "tokens/s")


def report_effects(config: SweepConfig, trials: Sequence[Trial], folder: Path) -> tuple[str, dict[str, Any]]:
    """Estimate the effects, write the page and the confirming sweep; return the report as text and values.

    Effects need every run of the design, with losses that are comparable; otherwise the text says what is missing.
    """
    names = list(config.factors)
    design = two_level_design(config.design, len(names))
    variants = dict.fromkeys(trial.variant for trial in trials)  # in the order of the design
    groups = [variant_group(variant, [t for t in trials if t.variant == variant]) for variant in variants]
    losses = _values(groups, seeds_of(config), "metrics.validation_loss")
    refusals = _refusals(groups)
    values: dict[str, Any] = {"design": config.design, "runs": len(design), "effects": None, "page": None}
    if losses is None or refusals:
        waiting = [f"{group.name}: {note}" for group in groups for note in group.notes]
        lines = refusals or [
            *waiting,
            "no effects yet: they need every run of the design; run the same command to resume",
        ]
        return "\n".join(lines), {**values, "missing": lines}
    effects = estimate_effects(design, names, losses)
    rates = _values(groups, seeds_of(config), "tokens_per_second")
    speed = {} if rates is None else _speed(design, names, rates)
    mixed = aliases(design, names)
    chosen = [effect for effect in effects.effects if effect.is_likely and effect.value < 0.0]
    proposal = _write_confirmation(config, chosen, folder) if chosen else None
    lines = _notes(effects, mixed, losses.shape)
    cells = [_HEADER, *(_cells(effect, speed) for effect in effects.effects)]
    if proposal is not None:
        lines.append(f"to confirm {', '.join(effect.name for effect in chosen)} with new seeds: cram sweep {proposal}")
    lines += [f"note: {line}" for line in find_cautions([run for group in groups for run in group.runs])]
    section = Section("Effects", [_table(cells)], lines, picture=draw_half_normal(effects) if len(names) > 2 else None)
    title = f"Effects of {len(names)} factors in {len(design)} runs"
    page = write_page("design", title, groups, [section], [], [], folder / REPORT)
    text = "\n".join([*table_lines(cells, right=(1, 2, 4)), "", *lines, f"page: {page}"])
    return text, {
        **values,
        "effects": [{**vars(effect), "tokens_per_second": speed.get(effect.name)} for effect in effects.effects],
        "standard_error": effects.error,
        "degrees": effects.degrees,
        "method": effects.method,
        "aliases": {name: [{"of": of, "share": share} for of, share in found] for name, found in mixed.items()},
        "confirm": None if proposal is None else str(proposal),
        "page": str(page),
    }


def variant_group(name: str, trials: Sequence[Trial]) -> Group:
    """Return the finished runs of a variant, with notes on the others."""
    runs, problems = load_runs([trial.path for trial in trials if finished_record(trial) is not None])
    group = make_group(name, runs)
    group.notes += [f"left out {problem}" for problem in problems]
    # Runs may be missing because they failed; without this note only the lucky seeds would be compared.
    group.notes += [f"left out {trial.path.name}: {why}" for trial in trials if (why := unfinished_reason(trial))]
    return group


def _values(groups: Sequence[Group], seeds: Sequence[int], key: str) -> NDArray[np.float64] | None:
    """Return a value of every run and seed, [runs, seeds]; None if one is missing."""
    rows = []
    for group in groups:
        found = {run.get("config.seed"): run.get(key) for run in group.runs}
        row = [found.get(seed) for seed in seeds]
        if not all(map(is_number, row)):
            return None
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def _refusals(groups: Sequence[Group]) -> list[str]:
    """Return the reasons why the losses of the runs cannot be compared with those of the first."""
    if not groups[0].runs:
        return []
    found = (
        f"not comparable: {line}" for one in groups[1:] if one.runs for line in comparability(one, groups[0]).refusals
    )
    return list(dict.fromkeys(found))


def _speed(design: NDArray[np.int8], names: Sequence[str], rates: NDArray[np.float64]) -> dict[str, float]:
    """Return the ratio of tokens/s with each factor on to that with it off."""
    return {name: math.exp(value) for name, value in zip(names, contrasts(design, np.log(rates)), strict=True)}


def _cells(effect: Effect, speed: dict[str, float]) -> tuple[str, ...]:
    word = "not distinguishable"
    if effect.is_likely:
        word = ("lower" if effect.value < 0.0 else "higher") + ("" if effect.is_clear else ", by itself only")
    rate = speed.get(effect.name)
    return (
        effect.name,
        signed(effect.value, 4),
        f"{signed(effect.low, 4)} to {signed(effect.high, 4)}",
        word,
        "not measured" if rate is None else f"{signed(100.0 * (rate - 1.0), 1)} %",
    )


def _table(cells: Sequence[tuple[str, ...]]) -> Table:
    return Table("Effect of every factor on the final held-out loss", cells[0], cells[1:], numeric=(1, 2, 4))


def _notes(effects: Effects, mixed: dict[str, list[tuple[str, float]]], shape: tuple[int, ...]) -> list[str]:
    """Describe how the error was found, and what the effects are mixed with."""
    runs, seeds = shape
    lines = [
        f"each effect compares {runs // 2} runs with {runs // 2}"
        + (f", {seeds} seeds each" if seeds > 1 else "")
        + f"; standard error {effects.error:.4f} nats, {effects.degrees:.1f} degrees of freedom"
        + (" (Lenth 1989: from the smaller effects, so most must be none)" if effects.method == LENTH else ""),
        "'by itself only': not significant after Holm's correction for the number of factors",
    ]
    whole = {name: [of for of, share in found if abs(share) > 1.0 - 1e-9] for name, found in mixed.items()}
    largest = max((abs(share) for found in mixed.values() for _, share in found), default=0.0)
    if any(whole.values()):
        for name, found in whole.items():
            if not found:
                continue
            more = f" and {len(found) - _MOST_ALIASES} more" if len(found) > _MOST_ALIASES else ""
            lines.append(f"{name} cannot be told from {', '.join(found[:_MOST_ALIASES])}{more}")
    elif largest:
        lines.append(f"every effect contains up to {largest:.2g} of each interaction of two other factors")
    else:
        lines.append("no effect is mixed with an interaction of two factors")
    return lines


def _write_confirmation(config: SweepConfig, chosen: Sequence[Effect], folder: Path) -> Path:
    """Write the sweep that compares the run with all chosen factors, and with each of them left out, on new budgets."""
    on = {effect.name: config.factors[effect.name] for effect in chosen}
    variants = {"without": {}, "all": merge_factors(list(on.values())).model_dump(exclude_defaults=True)}
    if len(on) > 1:
        for name in on:
            others = [factor for other, factor in on.items() if other != name]
            variants[f"all but {name}"] = merge_factors(others).model_dump(exclude_defaults=True)
    budget = config.budget.model_dump(exclude_none=True)
    sweep = {
        "name": f"{config.name}-confirm",
        "run": config.run,
        **({"budget": budget} if budget else {}),
        "seeds": _CONFIRM_SEEDS,
        "first_seed": config.first_seed + config.seeds,
        "baseline": "without",
        "set": dict(config.set),
        "variants": variants,
    }
    path = folder / CONFIRM
    write_atomic(path, OmegaConf.to_yaml(OmegaConf.create(sweep)))
    return path


def draw_half_normal(effects: Effects) -> Picture:
    """Draw the sizes of the effects against half-normal quantiles; without any true effect they follow the line."""
    from matplotlib.figure import Figure
    from scipy import stats

    found = sorted(effects.effects, key=lambda effect: abs(effect.value))
    places = stats.halfnorm.ppf((np.arange(len(found)) + 0.5) / len(found))
    with house_style():
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        axes = figure.subplots()
        axes.plot([0.0, places[-1]], [0.0, places[-1] * effects.error], color=series_style(1)[0], label="no effect")
        axes.plot(places, [abs(effect.value) for effect in found], "o", color=series_style(0)[0])
        for place, effect in zip(places, found, strict=True):
            if effect.is_likely:
                axes.annotate(
                    effect.name,
                    (place, abs(effect.value)),
                    (-6, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                )
        axes.set_xlabel("half-normal quantile")
        axes.set_title("Size of the effect (nats)")
        axes.legend()
    return Picture(
        "half-normal",
        "Dots: effects by size. Line: where they would lie without any true effect.",
        f"Half-normal plot of {len(found)} effects.",
        figure,
    )
