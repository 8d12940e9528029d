"""Distances between the distributions of two sets of features, labels left aside: squared MMD and Fréchet distance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystudy.errors import DataError, Problem
from raystudy.findings.transfer.sample import Floats, matrix, same_width


def squared_mmd(source: NDArray[Any], target: NDArray[Any], *, bandwidth: float | None = None) -> float:
    """Return the unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012).

    The kernel is exp(-|x - y|^2 / (2 h^2)). It needs memory for (n + m)^2 numbers.

    Args:
        source: (n, width), at least 2 images.
        target: (m, width), at least 2 images.
        bandwidth: h, in units of the features; None: the median distance over all pairs of images of both sets.

    Returns:
        From -(1/n + 1/m) to 2, without unit; around 0, so also slightly negative, where the distributions are equal.

    Raises:
        DataError: fewer than 2 images, numbers that are not finite, different widths, a bandwidth that is not positive.
    """
    left, right = _both(source, target)
    squares = _squared_distances(np.concatenate([left, right]))
    if bandwidth is None:
        scale = _median_square(squares)
    elif np.isfinite(bandwidth) and bandwidth > 0:
        scale = float(bandwidth) ** 2
    else:
        raise DataError(Problem("bandwidth", f"is {bandwidth}", "use a finite number above 0"))
    if scale == 0:  # all images have one and the same feature
        return 0.0
    kernel = np.exp(squares / (-2 * scale))
    n, m = len(left), len(right)
    within_source, within_target = (
        (block.sum() - np.trace(block)) / (size * (size - 1)) for block, size in ((kernel[:n, :n], n), (kernel[n:, n:], m))
    )
    return float(within_source + within_target - 2 * kernel[:n, n:].mean())


def frechet_distance(source: NDArray[Any], target: NDArray[Any]) -> float:
    """Return the squared 2-Wasserstein distance of the Gaussians with the features' means and covariances.

    |mean difference|^2 + tr(S + T - 2 (S T)^(1/2)) (Dowson and Landau 1982; of features: Heusel et al. 2017). With the
    roots S = A'A and T = B'B the last trace is the sum of the singular values of A B', which exists for covariances of
    any rank and cannot turn complex.

    Args:
        source: (n, width), at least 2 images.
        target: (m, width), at least 2 images.

    Returns:
        0 or more, in squared units of the features. Too large for small n: compare sets of about one size.

    Raises:
        DataError: fewer than 2 images, numbers that are not finite, different widths.
    """
    left, right = _both(source, target)
    shift = left.mean(axis=0) - right.mean(axis=0)
    a, b = _covariance_root(left), _covariance_root(right)
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * overlap))


def _both(source: NDArray[Any], target: NDArray[Any]) -> tuple[Floats, Floats]:
    left, right = matrix(source, "source"), matrix(target, "target")
    same_width(left, right)
    return left, right


def _squared_distances(points: Floats) -> Floats:
    # About their mean, or the differences of large squares would have no digits left.
    centred = points - points.mean(axis=0)
    norms = (centred**2).sum(axis=1)
    squares: Floats = np.maximum(norms[:, np.newaxis] + norms - 2 * centred @ centred.T, 0)
    np.fill_diagonal(squares, 0)
    return squares


def _median_square(squares: Floats) -> float:
    pairs = squares[np.tri(len(squares), k=-1, dtype=bool)]
    median = float(np.median(np.sqrt(pairs))) ** 2
    # Where most images are equal, the others still say what a distance is here.
    return median or float(pairs.mean())


def _covariance_root(points: Floats) -> Floats:
    """Return A, (min(n, width), width), whose A'A is the unbiased covariance of `points`."""
    root: Floats = np.linalg.qr((points - points.mean(axis=0)) / np.sqrt(len(points) - 1)).R
    return root
