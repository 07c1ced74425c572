"""Scaling laws: loss = E + A/N^a + B/D^b from runs of several sizes and lengths, by a robust fit with many starts.

The objective is that of Hoffmann et al. (2022, arXiv 2203.15556, approach 3): Huber's loss, delta 1e-3, of the
residuals of log loss. It is summed and minimized to convergence; the original fit averaged it and stopped early
(Besiroglu et al. 2024, arXiv 2404.10102). Starts come from a grid of exponents: for given exponents, the other
parameters are a linear fit (variable projection, used for scaling laws in arXiv 2603.22339).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cram_composer.analysis.runs.run import Array

DELTA = 1e-3
LEVEL = 0.95
RESAMPLES = 300
_EXPONENTS = np.geomspace(0.05, 2.0, 12)
_KEPT = 12  # best starts, minimized to convergence
_LOWEST = -30.0  # lower bound of log terms, effectively zero


@dataclass(frozen=True)
class PowerLaw:
    """loss = E + sum over j of scale[j] / x[j] ** exponent[j].

    Attributes:
        floor: E, in nats.
        scales, exponents: [terms].
        objective: sum of the Huber losses of the residuals of log loss.
    """

    floor: float
    scales: Array
    exponents: Array
    objective: float

    def loss(self, x: Array) -> Array:
        """Return the losses [points] at `x` [points, terms]."""
        return self.floor + (self.scales * x**-self.exponents).sum(axis=-1)


@dataclass(frozen=True)
class Fit:
    """A fitted law, its points, and laws fitted to resampled residuals.

    Attributes:
        law: the best fit.
        x: [points, terms]; loss: [points], nats.
        resampled: laws fitted to resampled residuals.
        spread: standard deviation of the residuals of log loss, corrected for the degrees of freedom of the law.
        spreads: the same for the resampled laws, [resamples].
    """

    law: PowerLaw
    x: Array
    loss: Array
    resampled: list[PowerLaw]
    spread: float
    spreads: Array

    def interval(self, values: Array) -> tuple[float, float]:
        """Return the 95 % percentile interval of a value per resampled law [resamples]."""
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def predict(self, x: Array) -> tuple[float, float, float]:
        """Predict the loss of one further run at `x` [terms] with its 95 % interval, including run-to-run noise."""
        noise = self.spreads * np.random.default_rng(1).normal(size=len(self.resampled))
        losses = np.array([float(law.loss(x)) for law in self.resampled]) * np.exp(noise)
        return float(self.law.loss(x)), *self.interval(losses)


def fit(x: Array, loss: Array, resamples: int = RESAMPLES) -> Fit:
    """Fit a law with one term for every column of `x` [points, terms] to `loss` [points].

    Intervals are from a parametric bootstrap: normal noise is added to the law's losses, with the spread of the
    residuals and its own uncertainty. For ten to thirty runs, resampling the runs may drop a whole size, and resampling
    the residuals gives too narrow intervals, since a robust fit makes some of them zero.

    Raises:
        ValueError: no more points than the law has parameters.
    """
    parameters = 1 + 2 * x.shape[1]
    if len(loss) <= parameters:
        raise ValueError(f"{len(loss)} points for {parameters} parameters")
    centre = np.exp(np.log(x).mean(axis=0))
    logs, target = np.log(x / centre), np.log(loss)
    starts = _initial_parameters(logs, loss)
    theta, objective = _levenberg_marquardt(starts, logs, np.broadcast_to(target, (len(starts), len(target))), 60)
    best = np.argsort(objective)[:_KEPT]
    theta, objective = _levenberg_marquardt(theta[best], logs, np.broadcast_to(target, (len(best), len(target))), 400)
    order = np.argsort(objective)
    law = _power_law(theta[order[0]], objective[order[0]], centre)

    predicted = np.log(law.loss(x))
    residuals = target - predicted
    free = len(loss) - parameters
    spread = float(np.sqrt((residuals**2).sum() / free))
    random = np.random.default_rng(0)
    spreads = spread * np.sqrt(free / random.chisquare(free, resamples))
    targets = predicted + spreads[:, None] * random.normal(size=(resamples, len(loss)))
    # Three starts per resample, since its optimum may be far from the best fit.
    begins = theta[order[[0, len(order) // 3, len(order) // 2]]]
    found, values = _levenberg_marquardt(np.repeat(begins, resamples, axis=0), logs, np.tile(targets, (3, 1)), 150)
    chosen = values.reshape(3, resamples).argmin(axis=0) * resamples + np.arange(resamples)
    return Fit(
        law,
        x,
        loss,
        [_power_law(found[place], values[place], centre) for place in chosen],
        spread,
        spreads,
    )


def _power_law(theta: Array, objective: float, centre: Array) -> PowerLaw:
    terms = len(centre)
    exponents = theta[1 + terms :]
    return PowerLaw(
        float(np.exp(theta[0])), np.exp(theta[1 : 1 + terms]) * centre**exponents, exponents, float(objective)
    )


def _initial_parameters(logs: Array, loss: Array) -> Array:
    """Return starts [starts, 1 + 2 * terms] on a grid of exponents: log E, log terms at the centre, exponents.

    For given exponents, E and the terms are a least-squares fit of relative errors; negative results start small.
    """
    terms = logs.shape[1]
    grid = np.stack(np.meshgrid(*[_EXPONENTS] * terms, indexing="ij"), axis=-1).reshape(-1, terms)
    columns = np.exp(-logs[None] * grid[:, None])
    design = np.concatenate([np.ones((*columns.shape[:2], 1)), columns], axis=2) / loss[None, :, None]
    normal = design.transpose(0, 2, 1) @ design + 1e-9 * np.eye(1 + terms)
    solved = np.linalg.solve(normal, design.sum(axis=1)[..., None])[..., 0]
    return np.concatenate([np.log(np.maximum(solved, 1e-2 * loss.min())), grid], axis=1)


def _levenberg_marquardt(theta: Array, logs: Array, target: Array, steps: int) -> tuple[Array, Array]:
    """Minimize the Huber loss by Levenberg-Marquardt with reweighting, for all starts at once.

    Args:
        theta: [starts, 1 + 2 * terms]. logs: [points, terms], about zero. target: log losses [starts, points].

    Returns:
        The parameters that each start converged to, and their objectives.
    """
    terms = logs.shape[1]
    theta = theta.copy()
    damping = np.full(len(theta), 1e-2)
    residual, share = _residuals(theta, logs, target)
    objective = _huber(residual)
    for _ in range(steps):
        jacobian = np.concatenate([share, -share[..., 1:] * logs], axis=2)
        weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
        weighted = jacobian * weights[..., None]
        normal = weighted.transpose(0, 2, 1) @ jacobian
        gradient = (weighted * residual[..., None]).sum(axis=1)
        diagonal = np.einsum("sii->si", normal)
        lifted = normal + np.eye(1 + 2 * terms) * (damping[:, None] * (diagonal + 1e-12))[:, None]
        tried = theta - np.linalg.solve(lifted, gradient[..., None])[..., 0]
        tried[:, : 1 + terms] = np.maximum(tried[:, : 1 + terms], _LOWEST)
        tried[:, 1 + terms :] = np.clip(tried[:, 1 + terms :], 0.0, 5.0)
        tried_residual, tried_share = _residuals(tried, logs, target)
        tried_objective = _huber(tried_residual)
        better = tried_objective < objective
        theta[better], residual[better], share[better] = tried[better], tried_residual[better], tried_share[better]
        settled = np.where(better, objective - tried_objective < 1e-10 * objective, damping > 1e10)
        objective = np.where(better, tried_objective, objective)
        damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
        if settled.all():
            break
    return theta, objective


def _residuals(theta: Array, logs: Array, target: Array) -> tuple[Array, Array]:
    """Return log law minus target [starts, points], and the shares of E and the terms [starts, points, 1 + terms]."""
    terms = logs.shape[1]
    powers = theta[:, None, 1 : 1 + terms] - theta[:, None, 1 + terms :] * logs
    parts = np.concatenate([np.broadcast_to(theta[:, :1, None], (*powers.shape[:2], 1)), powers], axis=2)
    top = parts.max(axis=2, keepdims=True)
    scaled = np.exp(parts - top)
    total = scaled.sum(axis=2, keepdims=True)
    return (top + np.log(total))[..., 0] - target, scaled / total


def _huber(residual: Array) -> Array:
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2)).sum(axis=1)
