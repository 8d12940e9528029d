"""What the other trials say of a trial, for every trial: the evidence of the self-check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from raystudy.findings.curves import Floats
from raystudy.findings.design import Bools
from raystudy.findings.fitting import Fitted
from raystudy.findings.observations import Observations

FEWEST = 5
"""Trials below which nothing is concluded from predictions."""
FAR = 3.0
"""Standard deviations beyond which a first report is unforeseen: of a Gaussian process that fits, 0.3 % are."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Final results of completed trials, each predicted from all other trials.

    Attributes:
        seen: on the metric's scale, shape (completed,).
        predicted: the same, as predicted.
        scores: standardised errors on the surrogate's scale, shape (completed,).
        kept: which are hold-outs of early stopping, shape (completed,).
    """

    seen: Floats
    predicted: Floats
    scores: Floats
    kept: Bools

    def coverage(self, mass: float) -> float:
        """Return the share of results inside their central band of probability `mass`."""
        return float((np.abs(self.scores) <= norm.ppf(0.5 + mass / 2)).mean())

    def error(self, chosen: Bools | None = None) -> float:
        """Return the root mean square error."""
        difference = self.seen - self.predicted
        return float(np.sqrt(((difference if chosen is None else difference[chosen]) ** 2).mean()))

    @property
    def r2(self) -> float | None:
        """Share of the variance of the results that is predicted; None where they are all the same."""
        variance = float(self.seen.var())
        return 1 - self.error() ** 2 / variance if variance > 0 and len(self.seen) >= FEWEST else None


@dataclass(frozen=True, slots=True)
class FirstReports:
    """Where trials began, each predicted from all other trials, on the surrogate's scale.

    Early stopping lets every trial report once, so these predictions are about all that was tried, the bad regions included.

    Attributes:
        errors: shape (trials,).
        scores: the same over their predicted standard deviations.
        stopped: which trials did not get to the budget, shape (trials,).
        variance: of the first reports.
    """

    errors: Floats
    scores: Floats
    stopped: Bools
    variance: float

    @property
    def unforeseen(self) -> Bools:
        """Which trials began far from what the others say, and were stopped: others do not say how they would end either."""
        return self.stopped & (np.abs(self.scores) > FAR)

    @property
    def unforeseen_share(self) -> float:
        """The part of the first reports' variance that lies in errors of unforeseen trials; 0 where there is no variance."""
        return float((self.errors[self.unforeseen] ** 2).sum() / len(self.errors) / self.variance) if self.variance > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Prediction:
    """What all other trials say of the rows of one, noise included."""

    number: int
    target: Floats
    weights: Floats
    mean: Floats
    covariance: Floats

    @property
    def error(self) -> Floats:
        """The rows less their predictions."""
        return self.target - self.mean


def leave_one_out(fitted: Fitted, observed: Observations) -> tuple[LeftOut, FirstReports]:
    """Predict the last report of each completed trial, and the first one of every trial, from all other trials."""
    predictions = list(_predictions(fitted))
    return _finals(fitted, observed, predictions), _firsts(fitted, observed, predictions)


def _predictions(fitted: Fitted) -> Iterator[_Prediction]:
    """Yield the predictions at the mode of the hyperparameters.

    A block of the inverse of the covariance holds what the other rows say of a trial's (Sundararajan and Keerthi 2001).
    """
    surrogate, rows = fitted.surrogate, fitted.surrogate.rows
    inverse = np.linalg.inv(surrogate.covariance(surrogate.mode))
    solved = inverse @ rows.target
    for number in range(len(fitted.trials)):
        block = np.flatnonzero(rows.trial == number)
        spread = np.linalg.inv(inverse[np.ix_(block, block)])
        target = rows.target[block]
        yield _Prediction(number, target, rows.weights[block], target - spread @ solved[block], spread)


def _finals(fitted: Fitted, observed: Observations, predictions: list[_Prediction]) -> LeftOut:
    surrogate = fitted.surrogate
    hyper = surrogate.hyperparameters(surrogate.mode)
    noise = (hyper.noise * hyper.spread(surrogate.x)) ** 2
    last = _reports_at(fitted.budget, observed)
    seen, predicted, scores, kept = [], [], [], []
    for one in predictions:
        trial = int(fitted.trials[one.number])
        if trial not in last:
            continue
        at_end = _combination(one.weights, fitted.coefficients(fitted.budget))
        if at_end is None:
            continue
        final = float(at_end @ one.mean)
        own = noise[one.number]
        latent = float(at_end @ (one.covariance - own * np.eye(len(at_end))) @ at_end)
        seen.append(last[trial])
        predicted.append(float(fitted.response.inverse(np.array(final))))
        scores.append((float(fitted.response.forward(np.array([last[trial]]))[0]) - final) / np.sqrt(max(latent, 0.0) + own))
        kept.append(bool(observed.kept[trial]))
    return LeftOut(np.array(seen), np.array(predicted), np.array(scores), np.array(kept, dtype=bool))


def _firsts(fitted: Fitted, observed: Observations, predictions: list[_Prediction]) -> FirstReports:
    last = _reports_at(fitted.budget, observed)
    values, errors, scores, stopped = [], [], [], []
    for one in predictions:
        at_start = _combination(one.weights, fitted.coefficients(1))
        if at_start is None:
            continue
        values.append(float(at_start @ one.target))
        errors.append(float(at_start @ one.error))
        scores.append(errors[-1] / np.sqrt(float(at_start @ one.covariance @ at_start)))
        stopped.append(int(fitted.trials[one.number]) not in last)
    spread = float(np.var(values)) if values else 0.0
    return FirstReports(np.array(errors), np.array(scores), np.array(stopped, dtype=bool), spread)


def _reports_at(epoch: int, observed: Observations) -> dict[int, float]:
    """Return the values reported at an epoch, by trial."""
    chosen = observed.epochs == epoch
    return dict(zip(observed.trial[chosen].tolist(), observed.values[chosen].tolist(), strict=True))


def _combination(weights: Floats, coefficients: Floats) -> Floats | None:
    """Return how a point of a trial's curve is put together of its rows, shape (rows,); None where the rows do not say it."""
    found = np.asarray(np.linalg.lstsq(weights.T, coefficients, rcond=None)[0], dtype=np.float64)
    return found if np.allclose(weights.T @ found, coefficients, atol=1e-6) else None
