"""Scaling laws: loss = E + A/N^a + B/D^b of runs of several sizes and lengths, by a robust fit with many starts.

The objective is that of Hoffmann et al. (2022, arXiv 2203.15556, approach 3): Huber's loss, delta 1e-3, of the
residuals of log loss. It is summed and minimized to convergence; the original fit averaged it and stopped early
(Besiroglu et al. 2024, arXiv 2404.10102). Starts come from a grid of exponents: for given exponents, the other
parameters are a linear fit (variable projection, used for scaling laws in arXiv 2603.22339).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cram_composer.analysis.runs.run import Array

DELTA = 1e-3
LEVEL = 0.95
RESAMPLES = 300
_EXPONENTS = np.geomspace(0.05, 2.0, 12)
_KEPT = 12  # best starts, minimized to convergence
_LOWEST = -30.0  # lower bound of log terms, effectively zero
_MOST_LOG = 50.0  # of annealing over the largest term: keeps a bad step of the search finite
_LEAST_SHARE = 1e-6  # of the largest term, left by annealing: keeps the logarithm finite


@dataclass(frozen=True)
class PowerLaw:
    """loss = E + sum over j of scale[j] / x[j] ** exponent[j] - G * annealed.

    Attributes:
        floor: E, in nats.
        scales, exponents: [terms].
        objective: sum of the Huber losses of the residuals of log loss.
        annealing: G, nats per unit of annealing; 0 for a law of final losses.
    """

    floor: float
    scales: Array
    exponents: Array
    objective: float
    annealing: float = 0.0

    def loss(self, x: Array, annealed: Array | float = 0.0) -> Array:
        """Return the losses [points] at `x` [points, terms], of runs that have annealed this much [points]."""
        return self.floor + (self.scales * x**-self.exponents).sum(axis=-1) - self.annealing * annealed


@dataclass(frozen=True)
class Fit:
    """A fitted law, its points, and laws fitted to resampled residuals.

    Attributes:
        law: the best fit.
        resampled: laws fitted to resampled residuals.
        spread: standard deviation of the residuals of log loss, corrected for the degrees of freedom of the law.
        spreads: the same for the resampled laws, [resamples].
    """

    law: PowerLaw
    resampled: Sequence[PowerLaw]
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


def fit(
    x: Array, loss: Array, resamples: int = RESAMPLES, annealed: Array | None = None, runs: Array | None = None
) -> Fit:
    """Fit a law with one term for every column of `x` [points, terms] to `loss` [points].

    Intervals are from a parametric bootstrap: normal noise is added to the law's losses, with the spread of the
    residuals and its own uncertainty. For ten to thirty runs, resampling the runs may drop a whole size, and resampling
    the residuals gives too narrow intervals, since a robust fit makes some of them zero.

    Args:
        x: sizes and lengths, > 0. loss: in nats.
        resamples: laws of the bootstrap.
        annealed: [points], >= 0: how far the learning rate has decayed; adds the term -G * annealed.
        runs: [points], the number of each point's run, if a run has several. Their noise has a common part, which the
            bootstrap draws once per run, if there are enough runs to tell it.

    Raises:
        ValueError: no more points than the law has parameters.
    """
    terms = x.shape[1]
    if annealed is not None and not annealed.any():
        annealed = None
    parameters = 1 + 2 * terms + (annealed is not None)
    if len(loss) <= parameters:
        raise ValueError(f"{len(loss)} points for {parameters} parameters")
    centre = np.exp(np.log(x).mean(axis=0))
    fall = 1.0 if annealed is None else float(annealed.max())
    problem = _Problem(np.log(x / centre), None if annealed is None else annealed / fall)
    target = np.log(loss)
    starts = problem.initial_parameters(loss)
    theta, objective = problem.minimize(starts, np.broadcast_to(target, (len(starts), len(target))), 60)
    best = np.argsort(objective)[:_KEPT]
    theta, objective = problem.minimize(theta[best], np.broadcast_to(target, (len(best), len(target))), 400)
    order = np.argsort(objective)
    law = _power_law(theta[order[0]], objective[order[0]], centre, fall)

    predicted = np.log(law.loss(x, 0.0 if annealed is None else annealed))
    noise = _noise(target - predicted, parameters, terms, runs, resamples)
    targets = predicted + noise.drawn
    # Three starts per resample, since its optimum may be far from the best fit.
    begins = theta[order[[0, len(order) // 3, len(order) // 2]]]
    found, values = problem.minimize(np.repeat(begins, resamples, axis=0), np.tile(targets, (3, 1)), 150)
    chosen = values.reshape(3, resamples).argmin(axis=0) * resamples + np.arange(resamples)
    resampled = [_power_law(found[place], values[place], centre, fall) for place in chosen]
    return Fit(law, resampled, noise.spread, noise.spreads)


@dataclass(frozen=True)
class _Noise:
    """Noise of log losses: its standard deviation for one run, redrawn per resample, and draws [resamples, points]."""

    spread: float
    spreads: Array
    drawn: Array


def _noise(residuals: Array, parameters: int, terms: int, runs: Array | None, resamples: int) -> _Noise:
    random = np.random.default_rng(0)
    if runs is None:
        spread, spreads = _spread(residuals, len(residuals) - parameters, resamples, random)
        return _Noise(spread, spreads, spreads[:, None] * random.normal(size=(resamples, len(residuals))))
    _, run = np.unique(runs, return_inverse=True)
    count = int(run.max()) + 1
    means = np.bincount(run, residuals) / np.bincount(run)
    # Differences between runs determine E and the terms of sizes, those within runs the other parameters.
    between = min(2 * terms - 1, parameters)
    within, withins = _spread(residuals - means[run], len(residuals) - count - parameters + between, resamples, random)
    common, commons = _spread(means, count - between, resamples, random)
    drawn = withins[:, None] * random.normal(size=(resamples, len(residuals)))
    drawn += (commons[:, None] * random.normal(size=(resamples, count)))[:, run]
    return _Noise(float(np.hypot(within, common)), np.hypot(withins, commons), drawn)


def _spread(residuals: Array, free: int, resamples: int, random: np.random.Generator) -> tuple[float, Array]:
    """Return the standard deviation and draws of it [resamples] that have its own uncertainty; 0 if nothing is free."""
    if free < 1:
        return 0.0, np.zeros(resamples)
    spread = float(np.sqrt((residuals**2).sum() / free))
    return spread, spread * np.sqrt(free / random.chisquare(free, resamples))


def _power_law(theta: Array, objective: float, centre: Array, fall: float) -> PowerLaw:
    terms = len(centre)
    levels, exponents = np.exp(theta[:-terms]), theta[-terms:]
    annealing = float(levels[-1]) / fall if len(levels) > 1 + terms else 0.0
    return PowerLaw(float(levels[0]), levels[1 : 1 + terms] * centre**exponents, exponents, float(objective), annealing)


@dataclass(frozen=True)
class _Problem:
    """Points of a fit: logs [points, terms] about zero, and annealing [points] up to one.

    Parameters theta are the logs of E, of the terms at the centre, and of G if there is annealing, then the exponents.
    """

    logs: Array
    annealed: Array | None

    @property
    def levels(self) -> int:
        """Number of parameters before the exponents."""
        return 1 + self.logs.shape[1] + (self.annealed is not None)

    def initial_parameters(self, loss: Array) -> Array:
        """Return starts [starts, parameters] on a grid of exponents.

        For given exponents, the rest is a least-squares fit of relative errors; negative results start small.
        """
        terms = self.logs.shape[1]
        grid = np.stack(np.meshgrid(*[_EXPONENTS] * terms, indexing="ij"), axis=-1).reshape(-1, terms)
        columns = np.exp(-self.logs[None] * grid[:, None])
        design = [np.ones((*columns.shape[:2], 1)), columns]
        if self.annealed is not None:
            design.append(np.broadcast_to(-self.annealed[:, None], (*columns.shape[:2], 1)))
        relative = np.concatenate(design, axis=2) / loss[None, :, None]
        normal = relative.transpose(0, 2, 1) @ relative + 1e-9 * np.eye(self.levels)
        solved = np.linalg.solve(normal, relative.sum(axis=1)[..., None])[..., 0]
        return np.concatenate([np.log(np.maximum(solved, 1e-2 * loss.min())), grid], axis=1)

    def minimize(self, theta: Array, target: Array, steps: int) -> tuple[Array, Array]:
        """Minimize the Huber loss by Levenberg-Marquardt with reweighting, for all starts at once.

        Args:
            theta: [starts, parameters]. target: log losses [starts, points].

        Returns:
            The parameters that each start converged to, and their objectives.
        """
        terms, levels = self.logs.shape[1], self.levels
        theta = theta.copy()
        damping = np.full(len(theta), 1e-2)
        residual, share = self._residuals(theta, target)
        objective = _huber(residual)
        for _ in range(steps):
            jacobian = np.concatenate([share, -share[..., 1 : 1 + terms] * self.logs], axis=2)
            weights = np.minimum(1.0, DELTA / np.maximum(np.abs(residual), 1e-300))
            weighted = jacobian * weights[..., None]
            normal = weighted.transpose(0, 2, 1) @ jacobian
            gradient = (weighted * residual[..., None]).sum(axis=1)
            diagonal = np.einsum("sii->si", normal)
            lifted = normal + np.eye(levels + terms) * (damping[:, None] * (diagonal + 1e-12))[:, None]
            tried = theta - np.linalg.solve(lifted, gradient[..., None])[..., 0]
            tried[:, :levels] = np.maximum(tried[:, :levels], _LOWEST)
            tried[:, levels:] = np.clip(tried[:, levels:], 0.0, 5.0)
            tried_residual, tried_share = self._residuals(tried, target)
            tried_objective = _huber(tried_residual)
            better = tried_objective < objective
            theta[better], residual[better], share[better] = tried[better], tried_residual[better], tried_share[better]
            settled = np.where(better, objective - tried_objective < 1e-10 * objective, damping > 1e10)
            objective = np.where(better, tried_objective, objective)
            damping = np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e12)
            if settled.all():
                break
        return theta, objective

    def _residuals(self, theta: Array, target: Array) -> tuple[Array, Array]:
        """Return log law minus target [starts, points], and the shares of the levels in it [starts, points, levels]."""
        terms = self.logs.shape[1]
        powers = theta[:, None, 1 : 1 + terms] - theta[:, None, -terms:] * self.logs
        parts = np.concatenate([np.broadcast_to(theta[:, :1, None], (*powers.shape[:2], 1)), powers], axis=2)
        top = parts.max(axis=2, keepdims=True)
        scaled = np.exp(parts - top)
        if self.annealed is not None:
            fallen = np.exp(np.minimum(theta[:, None, 1 + terms, None] - top, _MOST_LOG)) * self.annealed[:, None]
            scaled = np.concatenate([scaled, -fallen], axis=2)
        total = np.maximum(scaled.sum(axis=2, keepdims=True), _LEAST_SHARE)
        return (top + np.log(total))[..., 0] - target, scaled / total


def _huber(residual: Array) -> Array:
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2)).sum(axis=1)
