"""Proxy A-distance: how well a linear classifier tells source images from target images (Ben-David et al. 2007)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystudy.findings.transfer.sample import Floats, matrix, same_width

_ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class ADistance:
    """A proxy A-distance with what it was computed from.

    Attributes:
        error: share of images that a classifier which had not seen them took for the other set's.
        n_images: of each set.
    """

    error: float
    n_images: int

    @property
    def value(self) -> float:
        """2 (1 - 2 error), from 0 (a classifier cannot tell the sets apart) to 2 (it always can)."""
        # An error above one half is chance, or images that both sets share: it does not make them nearer than equal.
        return max(0.0, 2 * (1 - 2 * self.error))

    @property
    def standard_error(self) -> float:
        """Of `value`, from the number of images alone."""
        return 4 * math.sqrt(self.error * (1 - self.error) / (2 * self.n_images))


def proxy_a_distance(source: NDArray[Any], target: NDArray[Any], *, seed: int = 0) -> ADistance:
    """Train a logistic regression to tell the sets apart, on one half and then on the other, and test it on the rest.

    As many images of one set as of the other are used, drawn by the seed. Both sets are drawn with the same random numbers:
    so swapping them changes nothing, and of two equal sets no image is trained on in one and tested in the other.

    Args:
        source: (n, width), at least 2 images.
        target: (m, width), at least 2 images.
        seed: of the draw and the halves.

    Raises:
        DataError: fewer than 2 images, numbers that are not finite, different widths.
    """
    left, right = matrix(source, "source"), matrix(target, "target")
    same_width(left, right)
    n = min(len(left), len(right))
    left, right = (_drawn(points, n, seed) for points in (left, right))
    halves = (slice(0, n // 2), slice(n // 2, n))
    wrong = sum(_errors((left[a], right[a]), (left[b], right[b])) for a, b in (halves, halves[::-1]))
    return ADistance(wrong / (2 * n), n)


def _drawn(points: Floats, n: int, seed: int) -> Floats:
    return points[np.random.default_rng(seed).permutation(len(points))[:n]]


def _errors(train: tuple[Floats, Floats], test: tuple[Floats, Floats]) -> int:
    """Return how many images of `test` a classifier trained on `train` gets wrong."""
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate(train)
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread == 0] = 1
    labels = np.repeat([0, 1], [len(points) for points in train])
    classifier = LogisticRegression(max_iter=_ITERATIONS).fit((features - mean) / spread, labels)
    return sum(
        int(np.count_nonzero(classifier.predict((points - mean) / spread) != label)) for label, points in enumerate(test)
    )
