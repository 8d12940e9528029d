"""Features and labels that can be measured, and the refusal of those that cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raystudy.errors import DataError, Problem

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sample:
    """What a backbone makes of some images of a labelled data set.

    Attributes:
        name: of the data set, for messages.
        features: (n, width); n images, at least 2.
        labels: (n,), of at least two classes.
        class_sizes: (n_classes,), how many images of each class there are, drawn into the sample or not.
    """

    name: str
    features: Floats
    labels: Labels
    class_sizes: Labels

    @classmethod
    def of(cls, name: str, features: NDArray[Any], labels: NDArray[Any], class_sizes: NDArray[Any] | None = None) -> Sample:
        """Check and take `features` and `labels`; without `class_sizes` the images are all that there are.

        Raises:
            DataError: a number that is not finite, fewer than two images or classes, shapes that do not fit, a class with
                fewer images than were drawn of it.
        """
        checked, classes = matrix(features, name), class_labels(labels, len(features), name)
        counts = np.bincount(classes)
        sizes = counts if class_sizes is None else np.asarray(class_sizes, np.int64)
        if sizes.ndim != 1 or len(sizes) < len(counts) or (sizes[: len(counts)] < counts).any():
            raise DataError(Problem(name, "the sizes of its classes do not cover the images drawn", "give one size a class"))
        return cls(name, checked, classes, sizes)

    @property
    def n_classes(self) -> int:
        """The number of classes with an image in the sample."""
        return len(np.unique(self.labels))


def matrix(features: NDArray[Any], name: str, *, at_least: int = 2) -> Floats:
    """Return `features` as float64 (n, width).

    Raises:
        DataError: they have another shape, fewer than `at_least` rows, or a number that is not finite.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise DataError(Problem(name, f"its features have the shape {values.shape}", "expected (images, width)"))
    if len(values) < at_least:
        counted = "1 image" if len(values) == 1 else f"{len(values)} images"
        raise DataError(Problem(name, f"has {counted}", f"at least {at_least} are needed"))
    bad = np.count_nonzero(~np.isfinite(values).all(axis=1))
    if bad:
        what = f"{bad} of its {len(values)} images have features that are not finite"
        raise DataError(Problem(name, what, "use weights and images that give finite features"))
    return values


def same_width(source: Floats, target: Floats) -> None:
    """Raise DataError if features of two widths, so of two backbones, are to be compared."""
    if source.shape[1] != target.shape[1]:
        what = f"the source has {source.shape[1]} features an image, the target {target.shape[1]}"
        raise DataError(Problem("features", what, "take both from one backbone"))


def class_labels(labels: NDArray[Any], n: int, name: str) -> Labels:
    """Return `labels` as int64 (n,).

    Raises:
        DataError: they are not one whole number from 0 an image, or of fewer than two classes.
    """
    values = np.asarray(labels)
    if values.shape != (n,) or values.dtype.kind not in "iu" or (n and values.min() < 0):
        what = f"its labels are {values.dtype} of shape {values.shape}"
        raise DataError(Problem(name, what, f"expected {n} whole numbers from 0"))
    if len(np.unique(values)) < 2:
        raise DataError(Problem(name, "all its images are of one class", "at least 2 classes are needed"))
    return values.astype(np.int64)
