"""From observations to a fitted surrogate: which scale, how smooth, how many trials, and the hyperparameters' posterior."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raystudy.findings.curves import Floats, Ints, compress, features
from raystudy.findings.draws import Draws
from raystudy.findings.observations import Observations
from raystudy.findings.response import Response, Scale, scales
from raystudy.findings.surrogate import Surrogate, thinned

ROWS_TO_CHOOSE, ROWS_TO_FIT, ROWS_TO_CONDITION = 250, 700, 1800
"""Compressed reports that decide on scale and smoothness, on the hyperparameters, and that the posterior is conditioned on."""
SMOOTHNESS = (2.5, 1.5)
"""The Matérn kernels' ν that are tried, the smoother first."""
HYPERPARAMETERS, FUNCTIONS = 24, 6
"""Sets of hyperparameters drawn from their posterior, and functions drawn for each."""

Posterior = list[tuple[float, Draws]]
"""Functions with the weights of their hyperparameters."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A surrogate with its uncertainty.

    Attributes:
        response: the scale on which it works.
        surrogate: conditioned on the trials used.
        trials: indices of those among the observed.
        vectors: draws from the posterior of the hyperparameters, shape (sets, parameters).
        budget: T.
        seed: of everything drawn.
    """

    response: Response
    surrogate: Surrogate
    trials: Ints
    vectors: Floats
    budget: int
    seed: int

    def coefficients(self, epoch: int) -> Floats:
        """Return a curve's features at an epoch, shape (1 + K,)."""
        return features(np.array([float(epoch)]), self.budget)[0]

    def draws(self) -> Posterior:
        """Return functions drawn from the posterior, a group for each set of hyperparameters."""
        sets = len(self.vectors)
        return [
            (1 / sets, Draws(self.surrogate, vector, FUNCTIONS, self.seed * 1000 + one))
            for one, vector in enumerate(self.vectors)
        ]


def fewer(posterior: Posterior, most: int) -> Posterior:
    """Return the functions of `most` sets of hyperparameters, with weights that sum to 1."""
    total = sum(weight for weight, _ in posterior[:most])
    return [(weight / total, draws) for weight, draws in posterior[:most]]


def fit(observed: Observations, columns: tuple[slice, ...], budget: int, seed: int, *, scale: Scale | None = None) -> Fitted:
    """Fit the surrogate.

    Args:
        observed: reports of trials that have some.
        columns: of each factor in the encoded configurations.
        budget: T.
        seed: of thinning and of the posterior draws.
        scale: the scale to work on; by default the one under which the reports are most probable.
    """
    response, smoothness, start = _choose(observed, columns, budget, seed, scale)
    rows = compress(observed.trial, observed.epochs, response.forward(observed.values), budget)
    few, many = thinned(rows, ROWS_TO_FIT, seed), thinned(rows, ROWS_TO_CONDITION, seed)
    surrogate = Surrogate(observed.x[few], columns, rows.of(few), smoothness=smoothness)
    surrogate.mode = start
    surrogate.fit()
    vectors = surrogate.sample_hyperparameters(HYPERPARAMETERS, seed)
    if len(many) > len(few):
        mode = surrogate.mode
        surrogate = Surrogate(observed.x[many], columns, rows.of(many), smoothness=smoothness)
        surrogate.mode = mode
    return Fitted(response, surrogate, many, vectors, budget, seed)


def _choose(
    observed: Observations, columns: tuple[slice, ...], budget: int, seed: int, scale: Scale | None
) -> tuple[Response, float, Floats]:
    """Return scale, smoothness and hyperparameters of the most probable model, judged on some of the trials."""
    candidates = (scale,) if scale else scales(observed.values)
    fits = [_try(observed, columns, budget, seed, candidate, SMOOTHNESS[0]) for candidate in candidates]
    best = max(fits, key=lambda one: one[0])
    rougher = [_try(observed, columns, budget, seed, best[1].scale, smoothness) for smoothness in SMOOTHNESS[1:]]
    return max([best, *rougher], key=lambda one: one[0])[1:]


def _try(
    observed: Observations, columns: tuple[slice, ...], budget: int, seed: int, scale: Scale, smoothness: float
) -> tuple[float, Response, float, Floats]:
    """Return the log density of some trials' reports under a model, and the model."""
    response = Response.of(observed.values, scale)
    rows = compress(observed.trial, observed.epochs, response.forward(observed.values), budget)
    some = thinned(rows, ROWS_TO_CHOOSE, seed)
    surrogate = Surrogate(observed.x[some], columns, rows.of(some), smoothness=smoothness)
    surrogate.fit(steps=60)
    reports = observed.values[np.isin(observed.trial, some)]
    return -surrogate.value + response.log_slope(reports), response, smoothness, surrogate.mode
