"""Earth mover's distance between class means, and the domain similarity made of it (Cui et al. 2018).

Notation: `f_ij` the mass that moves from source class i to target class j, `c_ij` the Euclidean distance of their means,
`a_i` and `b_j` the masses of the classes, each adding up to 1. The distance is the least `sum f_ij c_ij` over flows with
row sums `a` and column sums `b`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import eye_array, kron, vstack
from scipy.spatial.distance import cdist

from raystudy.errors import DataError, Problem
from raystudy.findings.transfer.sample import Floats, Labels, Sample, matrix, same_width

GAMMA = 0.01
"""The scale of the similarity in Cui et al. 2018."""


def class_means(sample: Sample) -> tuple[Floats, Labels]:
    """Return the mean feature of each class in the sample, (k, width), and the sizes of these classes, (k,).

    The sizes are those of the data set: a sample with as many images of every class would make all classes equal.
    """
    classes, places = np.unique(sample.labels, return_inverse=True)
    sums = np.zeros((len(classes), sample.features.shape[1]))
    np.add.at(sums, places, sample.features)
    return sums / np.bincount(places)[:, np.newaxis], sample.class_sizes[classes]


def movers_distance(
    source: NDArray[Any],
    target: NDArray[Any],
    source_weights: NDArray[Any] | None = None,
    target_weights: NDArray[Any] | None = None,
) -> float:
    """Return the earth mover's distance between two sets of weighted points, exact up to the solver's 1e-7.

    Args:
        source: (k, width), at least one point.
        target: (l, width).
        source_weights: (k,), not negative; only their ratios count. None: all equal.
        target_weights: (l,), likewise.

    Returns:
        A distance in units of the features, 0 or more. The linear program has k * l variables: 1000 x 1000 take ten seconds.

    Raises:
        DataError: shapes, widths or weights that make no sense.
    """
    left, right = matrix(source, "source", at_least=1), matrix(target, "target", at_least=1)
    same_width(left, right)
    a, b = _shares(source_weights, len(left), "source"), _shares(target_weights, len(right), "target")
    cost = cdist(left, right)
    unit = cost.max()
    if unit == 0:
        return 0.0
    # The solver's tolerances are absolute: costs of at most 1 make them relative.
    rows, columns = kron(eye_array(len(a)), np.ones((1, len(b)))), kron(np.ones((1, len(a))), eye_array(len(b)))
    solution = linprog((cost / unit).ravel(), A_eq=vstack([rows, columns]).tocsr(), b_eq=np.concatenate([a, b]), method="highs")
    if solution.fun is None:
        raise ArithmeticError(f"the transport problem was not solved: {solution.message}")
    return max(0.0, float(solution.fun)) * float(unit)


def emd_similarity(distance: float, *, gamma: float = GAMMA) -> float:
    """Return exp(-gamma * distance): 1 for a distance of 0, falling towards 0. Ranks pairs as the distance does."""
    return math.exp(-gamma * distance)


def _shares(weights: NDArray[Any] | None, n: int, name: str) -> Floats:
    values = np.ones(n) if weights is None else np.asarray(weights, np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        what = f"its weights are {values.tolist() if values.size <= 5 else values.shape}"
        raise DataError(Problem(name, what, f"expected {n} finite numbers, none negative, not all 0"))
    return values / values.sum()
