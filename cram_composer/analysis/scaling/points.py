"""Finished runs as points of a scaling law: their sizes, lengths and losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cram_composer.analysis.compare.comparability import data_refusals
from cram_composer.analysis.compare.groups import differing_settings
from cram_composer.analysis.runs.run import RunData
from cram_composer.analysis.scaling.annealing import Curve, read_curve
from cram_composer.config.formatting import is_number
from cram_composer.errors import CramError

_SIZE_KEYS = ("model.", "budget.", "train.batch_size", "train.device_train_microbatch_size", "eval.", "checkpoint.")


@dataclass(frozen=True)
class Point:
    """A finished run: parameters (tied weights counted once, or none of embeddings), tokens, held-out loss, speed.

    `curve` has its losses in the loop, if the law is to use them.
    """

    name: str
    parameters: float
    tokens: float
    loss: float
    flops_per_token: float | None
    tokens_per_second: float | None
    curve: Curve | None = None

    @property
    def flops(self) -> float | None:
        """Model FLOPs of the whole run."""
        return None if self.flops_per_token is None else self.flops_per_token * self.tokens


def read_points(
    runs: Sequence[RunData], embeddings: bool = True, in_loop: bool = False
) -> tuple[list[Point], list[str]]:
    """Read finished runs as points, with notes on runs left out and differing settings.

    Args:
        runs: the runs, with their curves if `in_loop`.
        embeddings: count embeddings as parameters, as Hoffmann et al. 2022 did; Kaplan et al. 2020 did not.
        in_loop: read the losses in the loop, and leave out runs without such that follow their learning rate.

    Raises:
        CramError: the losses of the runs are not comparable, or a record does not count embeddings.
    """
    usable, notes = usable_runs(runs, any_rate=in_loop)
    # The schedule of a branch is that of its trunk plus a decay, so it differs by length.
    is_free = in_loop or any(run.get("branched_from") for run in usable)
    ignored = (*_SIZE_KEYS, "schedule.") if is_free else _SIZE_KEYS
    if differing := [key for key in differing_settings(usable) if not key.startswith(ignored)] if usable else []:
        notes.append(f"settings differ ({', '.join(differing[:5])}), so the law mixes several recipes")
    if again := [run.name for run in usable if (run.get("epochs") or 0) > 1]:
        notes.append(f"{len(again)} runs repeated their data, which is worth less than new tokens")
    points = [
        Point(
            run.name,
            model_size(run, embeddings),
            float(run.get("tokens")),
            float(run.get("metrics.validation_loss")),
            run.get("flops_per_token"),
            run.get("tokens_per_second"),
            read_curve(run) if in_loop else None,
        )
        for run in usable
    ]
    if in_loop:
        kept = [point for point in points if point.curve is not None]
        if len(kept) < len(points):
            notes.append(
                f"left out {len(points) - len(kept)} runs that averaged their weights, are branches, have an "
                "incomplete trace, or no held-out losses in the loop after the peak of the rate (eval.interval)"
            )
        points = kept
    return points, notes


def usable_runs(runs: Sequence[RunData], any_rate: bool = False) -> tuple[list[RunData], list[str]]:
    """Return the finished runs with comparable losses and a decayed rate, and notes on those left out.

    Args:
        runs: the runs.
        any_rate: also return runs whose rate has not decayed.

    Raises:
        CramError: the losses are not comparable.
    """
    usable = [run for run in runs if run.get("status") == "finished" and is_number(run.get("metrics.validation_loss"))]
    if refusals := data_refusals(usable):
        raise CramError(
            f"losses of these runs are not comparable: {'; '.join(refusals)}; select a subset with a filter, "
            "such as data.local=..."
        )
    notes = []
    if len(usable) < len(runs):
        notes.append(f"left out {len(runs) - len(usable)} unfinished runs")
    decayed = [run for run in usable if any_rate or not _rate_is_high(run)]
    if 0 < len(decayed) < len(usable):
        notes.append(f"left out {len(usable) - len(decayed)} runs whose learning rate did not decay")
        usable = decayed
    return usable, notes


def model_size(run: RunData, embeddings: bool) -> float:
    """Return the number of parameters, with or without embeddings. Raises CramError if the latter is not recorded."""
    if embeddings:
        return float(run.get("parameters"))
    if not is_number(counted := run.get("embedding_parameters")):
        raise CramError(f"{run.path}: its record does not count embeddings; leave out --non-embedding")
    return float(run.get("parameters") - counted)


def _rate_is_high(run: RunData) -> bool:
    """Return True if the learning rate ended near its peak, as in a trunk for branches."""
    if run.get("config.algorithms.swa"):  # SWA includes a decay
        return False
    return run.get("config.schedule.name") == "constant" or (run.get("config.schedule.final") or 0.0) > 0.5
