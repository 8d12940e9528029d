"""`sklearn:digits`: 1,797 scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystudy.data.pool import Read
from raystudy.data.source import Listing, Scan
from raystudy.errors import DataError, Problem

_WHITE = 16  # the scans count ink in 17 steps


def check_name(name: str) -> None:
    """Check that scikit-learn has these images.

    Raises:
        DataError: it has not.
    """
    if name != "digits":
        raise DataError(Problem(f"sklearn:{name}", f"there are no images named {name!r}", "use sklearn:digits"))


def scan_sklearn(name: str) -> Scan:
    """Identify the images by scikit-learn's version, without the second that importing it takes."""
    check_name(name)
    return Scan(
        source="sklearn:digits",
        base="sklearn:digits, image ",
        identity=("sklearn:digits", version("scikit-learn")),
        load=_load,
    )


def _load() -> Listing:
    from sklearn.datasets import load_digits

    digits = load_digits()
    samples = np.round(digits.images * 255 / _WHITE).astype(np.uint8)
    return array_listing(samples, digits.target, file="sklearn:digits")


def array_listing(samples: NDArray[Any], targets: NDArray[Any], *, file: str) -> Listing:
    """List images that are in memory: `samples` (n, H, W), `targets` (n,) of whole numbers, read from `file`."""
    classes, labels = np.unique(targets, return_inverse=True)

    def reads() -> Iterator[Read]:
        return (functools.partial(samples.__getitem__, row) for row in range(len(samples)))

    return Listing(
        class_names=tuple(str(target) for target in classes),
        names=[str(row) for row in range(len(samples))],
        labels=labels.astype(np.int64),
        reads=reads,
        files=lambda: frozenset({file}),
    )
