"""The self-check of every answer: predict trials that were left out, and see what a factor that does nothing gets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom, norm

from raystudy.findings.answer import Interval, SelfCheck
from raystudy.findings.curves import Floats
from raystudy.findings.design import Bools
from raystudy.findings.fitting import Fitted
from raystudy.findings.observations import Observations

DOUBT = 0.01
"""Probability below which fewer left-out results in their bands than promised are no accident."""
NULL_MOST = 0.02
"""Lower end of the null factor's share above which something is wrong."""
_FEWEST = 5
"""Trials below which nothing is concluded from predictions."""


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
        return 1 - self.error() ** 2 / variance if variance > 0 and len(self.seen) >= _FEWEST else None


def leave_one_out(fitted: Fitted, observed: Observations) -> LeftOut:
    """Predict each completed trial's last report from all other trials, at the mode of the hyperparameters.

    A block of the inverse of the covariance holds what the other rows say of a trial's (Sundararajan and Keerthi 2001).
    """
    surrogate, rows = fitted.surrogate, fitted.surrogate.rows
    inverse = np.linalg.inv(surrogate.covariance(surrogate.mode))
    solved = inverse @ rows.target
    hyper = surrogate.hyperparameters(surrogate.mode)
    noise = (hyper.noise * hyper.spread(surrogate.x)) ** 2
    last = {
        int(t): float(v) for t, e, v in zip(observed.trial, observed.epochs, observed.values, strict=True) if e == fitted.budget
    }
    seen, predicted, scores, kept = [], [], [], []
    for number, trial in enumerate(fitted.trials):
        block = np.flatnonzero(rows.trial == number)
        if int(trial) not in last:
            continue
        spread = np.linalg.inv(inverse[np.ix_(block, block)])
        mean = rows.target[block] - spread @ solved[block]
        last_report = _last_report(rows.weights[block])
        final = float(last_report @ mean)
        latent = float(last_report @ (spread - noise[number] * np.eye(len(block))) @ last_report)
        value = last[int(trial)]
        seen.append(value)
        predicted.append(float(fitted.response.inverse(np.array(final))))
        scores.append(
            (float(fitted.response.forward(np.array([value]))[0]) - final) / np.sqrt(max(latent, 0.0) + noise[number])
        )
        kept.append(bool(observed.kept[trial]))
    return LeftOut(np.array(seen), np.array(predicted), np.array(scores), np.array(kept, dtype=bool))


def _last_report(weights: Floats) -> Floats:
    """Return how the value at the budget is put together of a completed trial's rows, shape (rows,)."""
    if len(weights) == weights.shape[1]:
        return np.asarray(np.linalg.inv(weights)[0])
    # Fewer reports than a curve has numbers are rows as they are: the last one is that in which all bends vanish.
    return np.asarray(np.abs(weights[:, 1:]).sum(axis=1) < 1e-12, dtype=float)


def self_check(left_out: LeftOut, null_factor: Interval, metric: str) -> SelfCheck:
    """Judge the predictions of trials left out, and the share of a factor that nothing reads.

    Args:
        left_out: the predictions.
        null_factor: total index of the null factor.
        metric: its name, for the sentences.
    """
    number, holdouts = len(left_out.seen), int(left_out.kept.sum())
    good: list[str] = []
    bad: list[str] = []
    if number:
        covered = left_out.coverage(0.9)
        text = f"{round(covered * number)} of {number} left-out results lie inside their 90 % bands"
        failed = number >= _FEWEST and binom.cdf(round(covered * number), number, 0.9) < DOUBT
        (bad if failed else good).append(f"{text}, too few: the model of {metric} does not fit" if failed else text)
    if holdouts >= _FEWEST:
        inside = int((np.abs(left_out.scores[left_out.kept]) <= norm.ppf(0.95)).sum())
        text = f"{inside} of {holdouts} trials that early stopping would have stopped end inside their 90 % bands"
        failed = binom.cdf(inside, holdouts, 0.9) < DOUBT
        (bad if failed else good).append(f"{text}, too few: bad trials are not what the model thinks" if failed else text)
    text = f"a factor that does nothing gets {null_factor.low:.1%} to {null_factor.high:.1%} of the variance"
    failed = null_factor.low > NULL_MOST
    (bad if failed else good).append(f"{text}: shares of that size mean nothing" if failed else text)
    return SelfCheck(
        passed=not bad,
        sentences=tuple(f"{text[0].upper()}{text[1:]}." for text in (*bad, *good)),
        loo_r2=left_out.r2 if number else None,
        loo_error=left_out.error() if number else None,
        n_loo=number,
        holdout_error=left_out.error(left_out.kept) if holdouts else None,
        n_holdout=holdouts,
        coverage_50=left_out.coverage(0.5) if number else None,
        coverage_90=left_out.coverage(0.9) if number else None,
        null_factor=null_factor,
    )
