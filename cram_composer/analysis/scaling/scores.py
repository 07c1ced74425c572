"""Task scores against the held-out loss: how many points a lower loss was worth in runs that were evaluated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cram_composer.analysis.compare.compare import fine_tuning_key
from cram_composer.analysis.compare.statistics import student_quantile
from cram_composer.analysis.runs.run import RunData
from cram_composer.config.formatting import is_number
from cram_composer.errors import CramError

LEAST_RUNS = 4  # for a line and the spread around it
STEP = 0.1  # nats, the unit of slopes


@dataclass(frozen=True)
class ScoreTrend:
    """Least-squares line of a score over the final held-out loss.

    Attributes:
        title: of the score, such as "CoLA".
        runs: evaluated runs.
        gain: points for a loss that is 0.1 nats lower, with its 95 % interval.
        correlation: Pearson's, of score and loss; -1 if a lower loss always gave a higher score.
        expected: score at a predicted loss, as if that were certain, with the 95 % interval of one run; None without a
            prediction.
    """

    title: str
    runs: int
    gain: tuple[float, float, float]
    correlation: float
    expected: tuple[float, float, float] | None


def score_trends(runs: Sequence[RunData], protocol: str, loss: float | None = None) -> list[ScoreTrend]:
    """Fit every score of a protocol to the final held-out losses of the runs.

    Args:
        runs: runs, of which those that were evaluated by the protocol are used.
        protocol: name of a protocol, such as glue-compact or minimal-pairs.
        loss: predicted loss to expect scores at, in nats.

    Raises:
        CramError: fewer than four runs were evaluated, their losses do not differ, or they were fine-tuned differently.
    """
    finished = [run for run in runs if run.get("status") == "finished" and run.evaluated.get(protocol)]
    fine_tuned = [run for run in finished if run.evaluated[protocol].get("numbers")]
    if len({fine_tuning_key(run, protocol) for run in fine_tuned}) > 1:
        raise CramError(
            f"--scores {protocol}: these runs were fine-tuned with different settings, tasks or seeds; evaluate them "
            "anew in one command"
        )
    points: dict[str, list[tuple[float, float]]] = {}
    for run in finished:
        measured = run.get("metrics.validation_loss")
        for title, score in _scores(run.evaluated[protocol]):
            if is_number(measured) and is_number(score):
                points.setdefault(title, []).append((float(measured), float(score)))
    fitted = {title: np.array(found) for title, found in points.items() if len(found) >= LEAST_RUNS}
    if not fitted or any(np.ptp(found[:, 0]) == 0.0 for found in fitted.values()):
        most = max((len(found) for found in points.values()), default=0)
        raise CramError(
            f"--scores {protocol}: {most} of these runs have such scores, and {LEAST_RUNS} of different losses are "
            f"needed; run: cram eval RUN ... --suite {protocol}"
        )
    return [_fit(title, found[:, 0], found[:, 1], loss) for title, found in fitted.items()]


def _scores(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the titles and values of a protocol's scores: of its tasks, or the mean over minimal pairs."""
    for number in row.get("numbers", []):
        yield number["title"], number["median"]
    if row.get("kind") == "minimal-pairs":
        yield "minimal pairs", row.get("overall")


def _fit(title: str, losses: np.ndarray, scores: np.ndarray, at: float | None) -> ScoreTrend:
    count, centre = len(losses), float(losses.mean())
    apart = float(((losses - centre) ** 2).sum())
    slope, level = np.polyfit(losses - centre, scores, 1)
    residuals = scores - level - slope * (losses - centre)
    spread = math.sqrt(float((residuals**2).sum()) / (count - 2))
    quantile = student_quantile(0.95, count - 2)
    gain, half = -STEP * float(slope), STEP * quantile * spread / math.sqrt(apart)
    expected = None
    if at is not None:
        value = float(level + slope * (at - centre))
        wide = quantile * spread * math.sqrt(1 + 1 / count + (at - centre) ** 2 / apart)
        expected = (value, value - wide, value + wide)
    correlation = float(np.corrcoef(losses, scores)[0, 1]) if np.ptp(scores) else 0.0
    return ScoreTrend(title, count, (gain, gain - half, gain + half), correlation, expected)
