"""LogME: how probable a target's labels are under Bayesian linear regression on its features (You et al. 2021).

Notation: `F` (n, width) the features, `y` (n,) the 0/1 indicator of a class, `a` the precision of the weights' prior, `b`
that of the noise, `t = a / b`. With the singular values s_i of F and z = U'y, everything depends on s^2 and z^2 alone; z has
`k` entries, the rank of F, and `rest = |y|^2 - |z|^2` is what no weights can explain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystudy.findings.transfer.sample import Floats, class_labels, matrix

_STARTS = (1e-3, 1.0, 1e3)
_ROUNDS = 10_000
_CONVERGED = 1e-9
_SMALLEST, _LARGEST = 1e-12, 1e12
"""Ends of t relative to the largest s^2, where the evidence has reached its limits: no noise, no weights."""


def logme(features: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the log evidence per image, maximised over `a` and `b` by fixed-point iteration, averaged over the classes.

    Args:
        features: (n, width), at least 2 images; as the backbone gives them, neither centred nor scaled.
        labels: (n,), of at least two classes.

    Returns:
        In nats per image; larger means that a linear head explains the labels better. Not bounded: it can be above 0.

    Raises:
        DataError: fewer than 2 images or classes, numbers that are not finite.
    """
    values = matrix(features, "target")
    classes = class_labels(labels, len(values), "target")
    left, singular, _ = np.linalg.svd(values, full_matrices=False)
    is_used = singular > singular[0] * max(values.shape) * np.finfo(np.float64).eps
    squares = singular[is_used] ** 2
    indicators = (classes[:, np.newaxis] == np.unique(classes)).astype(np.float64)
    projected = (left[:, is_used].T @ indicators) ** 2
    rests = np.maximum(indicators.sum(axis=0) - projected.sum(axis=0), 0)
    evidences = [_evidence(squares, z2, float(rest), len(values)) for z2, rest in zip(projected.T, rests, strict=True)]
    return float(np.mean(evidences))


def _evidence(squares: Floats, z2: Floats, rest: float, n: int) -> float:
    """Return the maximised log evidence per image of one class."""
    if len(squares) == 0:  # every feature is 0
        return _evidence_at(1.0, np.ones(1), np.zeros(1), rest, n)
    # Of few images the evidence may have several maxima: from starts that do not depend on the features' scale, the best.
    return max(_evidence_from(float(squares.mean()) * start, squares, z2, rest, n) for start in _STARTS)


def _evidence_from(t: float, squares: Floats, z2: Floats, rest: float, n: int) -> float:
    """Return the log evidence per image where the iteration from a / b = t ends."""
    low, high = squares.max() * _SMALLEST, squares.max() * _LARGEST
    updated = t = float(np.clip(t, low, high))
    for _ in range(_ROUNDS):
        updated = float(np.clip(_next(t, squares, z2, rest, n), low, high))
        if abs(updated - t) <= _CONVERGED * t:
            break
        t = updated
    return _evidence_at(updated, squares, z2, rest, n)


def _next(t: float, squares: Floats, z2: Floats, rest: float, n: int) -> float:
    """Return a / b after an update of both (You et al. 2021; MacKay 1992).

    a = gamma / |m|^2 and b = (n - gamma) / |F m - y|^2, with `gamma` the number of well determined weights and `m` the
    posterior's mean.
    """
    shrunk = t / (squares + t)
    gamma, free = (1 - shrunk).sum(), n - len(squares) + shrunk.sum()
    weights, misfit = (squares * z2 / (squares + t) ** 2).sum(), (z2 * shrunk**2).sum() + rest
    bottom = weights * free
    return float(gamma * misfit / bottom) if bottom > 0 else np.inf


def _evidence_at(t: float, squares: Floats, z2: Floats, rest: float, n: int) -> float:
    """Return the log evidence per image at a / b = t and the b that is best there.

    y is normal with covariance (I + FF'/t) / b, so b = n / q with q = y'(I + FF'/t)^-1 y.
    """
    q = float((z2 * t / (squares + t)).sum() + rest)
    precision = n / max(q, np.finfo(np.float64).tiny)
    return float(0.5 * (np.log(precision / (2 * np.pi)) - np.log1p(squares / t).sum() / n - 1))
