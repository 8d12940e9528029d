"""Learning curves in few numbers: each trial's reports, whatever their number, as at most p rows that lose nothing.

The model of a trial's curve, with T the budget, is linear in p = 1 + K coefficients:

    z(t) = a + Σ_k b_k r_k(t) + ε,   r_k(T) = 0,   ε ~ N(0, σ²) at each report,

so a is the final value and the b_k say how the curve gets there. With F the (n, p) matrix of a trial's features and F = QR,
the p numbers Qᵀz and the residual sum of squares are sufficient for (a, b, σ²): a Gaussian process over configurations sees
p rows a trial instead of n reports, with the same likelihood. Trials with up to p reports keep them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BENDS = 3
"""K: how many functions of time, besides the final value, make up a curve; fewer where the budget is below four epochs."""


def features(epochs: Floats, budget: int) -> Floats:
    """Return the features of a curve at `epochs`, shape (n, 1 + K): 1 and r_k(t), all r_k(T) = 0; K = min(3, T - 1).

    With s = log(T/t) / log T, which is 1 at the first epoch and 0 at the budget: r_1 = s, r_2 = s (s - 1) and
    r_3 = s (s - 1) (2s - 1). A power law in t is an exponential in s, which a cubic follows closely for the exponents that
    learning curves have; a quadratic leaves enough over to make intervals too narrow.
    """
    if budget == 1:
        return np.ones((len(epochs), 1))
    s = np.log(budget / epochs) / np.log(budget)
    bends = [s, s * (s - 1), s * (s - 1) * (2 * s - 1)]
    return np.stack([np.ones_like(s), *bends[: min(BENDS, budget - 1)]], axis=1)


@dataclass(frozen=True, slots=True)
class Rows:
    """Compressed reports of n trials: target = coefficients of the trial's curve · weights + noise.

    Attributes:
        trial: index of the trial, shape (rows,).
        weights: shape (rows, p).
        target: shape (rows,).
        squares: residual sum of squares of each trial's own least-squares curve, shape (n,).
        freedom: its degrees of freedom, shape (n,).
    """

    trial: Ints
    weights: Floats
    target: Floats
    squares: Floats
    freedom: Floats

    @property
    def n_trials(self) -> int:
        """Number of trials."""
        return len(self.squares)

    def of(self, trials: Ints) -> Rows:
        """Return the rows of some trials, numbered in the order given."""
        position = np.full(self.n_trials, -1)
        position[trials] = np.arange(len(trials))
        chosen = position[self.trial] >= 0
        return Rows(
            position[self.trial[chosen]],
            self.weights[chosen],
            self.target[chosen],
            self.squares[trials],
            self.freedom[trials],
        )


def compress(trial: Ints, epochs: Floats, values: Floats, budget: int) -> Rows:
    """Return the rows of all trials' reports.

    Args:
        trial: index of each report's trial, 0 to n - 1, each present; shape (reports,).
        epochs: shape (reports,), from 1 to `budget`.
        values: shape (reports,), finite.
        budget: T.
    """
    order = np.lexsort((epochs, trial))
    ends = np.cumsum(np.bincount(trial))
    all_features = features(epochs, budget)
    index, weights, target, squares, freedom = [], [], [], [], []
    for number, chosen in enumerate(np.split(order, ends[:-1])):
        matrix, z = all_features[chosen], values[chosen]
        rest = 0.0
        if len(z) > matrix.shape[1]:
            q, r = np.linalg.qr(matrix)
            rest = float(z @ z - (q.T @ z) @ (q.T @ z))
            matrix, z = r, q.T @ z
        index.append(np.full(len(z), number))
        weights.append(matrix)
        target.append(z)
        squares.append(max(rest, 0.0))
        freedom.append(float(len(chosen) - len(z)))
    return Rows(np.concatenate(index), np.concatenate(weights), np.concatenate(target), np.array(squares), np.array(freedom))
