"""What the rest of the program sees of the images: decoded pixels, labels, splits, and what was left out.

Notation: `n` images, of `size` x `size` pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raystudy.errors import DataError, Problem

_BAD_IMAGES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class BadImage:
    """An image that could not be read.

    Attributes:
        name: the path relative to its source, or the row number; images of a second source have the prefix
            `validation:` or `test:`.
        reason: why it could not be read, in words.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Splits:
    """Indices into the images: sorted, disjoint, together all of them."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64] | None


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Images that are decoded, checked and split.

    Attributes:
        images: (n, size, size, 3), RGB; a read-only memory map, shared by all processes of the machine.
        labels: (n,), indices into `class_names`.
        names: (n,), the path of each image relative to its source, or its row number.
        class_names: sorted as the source orders its classes.
        splits: which images train, validate and test.
        bad: the images that were skipped.
        warnings: what deserves a look but stops nothing.
        fingerprint: hex; equal exactly where pixels, labels, class names and splits are.
        original_sizes: (n, 2), width and height in pixels before resizing.
        pixels: hex; equal exactly where `images` is; empty where nobody has computed it.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: Sequence[str]
    class_names: tuple[str, ...]
    splits: Splits
    bad: tuple[BadImage, ...]
    warnings: tuple[str, ...]
    fingerprint: str
    original_sizes: NDArray[np.int32] | None = None
    pixels: str = ""


@dataclass(frozen=True, slots=True)
class ClassCount:
    """How many images of one class each split holds."""

    name: str
    train: int
    validation: int
    test: int


@dataclass(frozen=True, slots=True)
class DataSummary:
    """What `raystudy validate` shows of the data.

    Attributes:
        classes: the counts of each class, in the order of the labels.
        train: the number of training images; likewise `validation` and `test` (0 without a test split).
        image_size: the side of the decoded images, in pixels.
        original_sizes: the smallest, median and largest of the images' shorter sides before resizing, in pixels.
        bad: the images that were skipped.
        warnings: what deserves a look but stops nothing.
        fingerprint: identifies pixels, labels and splits.
    """

    classes: tuple[ClassCount, ...]
    train: int
    validation: int
    test: int
    image_size: int
    original_sizes: tuple[int, int, int] | None
    bad: tuple[BadImage, ...]
    warnings: tuple[str, ...]
    fingerprint: str


class BadImagesError(DataError):
    """Images cannot be read. `problems` holds every one of them; the message lists the first 20."""

    def _render(self) -> str:
        shown = [f"  {problem}" for problem in self.problems[:_BAD_IMAGES_SHOWN]]
        hidden = len(self.problems) - len(shown)
        more = [f"  ... and {hidden} more"] if hidden else []
        count = "1 image cannot be read" if len(self.problems) == 1 else f"{len(self.problems)} images cannot be read"
        fix = "repair or remove them, or set data.on_bad_image: skip"
        return "\n".join([f"{self.title}: {count}; {fix}", *shown, *more])


def bad_images_error(source: str, places: Sequence[tuple[str, str]]) -> BadImagesError:
    """Return the error for all unreadable images of `source`, given as (place, reason)."""
    return BadImagesError([Problem(place, reason) for place, reason in places], title=source)


def summarise(data: PreparedData) -> DataSummary:
    """Count images per class and split."""
    splits = data.splits
    empty = np.empty(0, np.int64)
    train, validation, test = (
        np.bincount(data.labels[indices], minlength=len(data.class_names))
        for indices in (splits.train, splits.validation, empty if splits.test is None else splits.test)
    )
    return DataSummary(
        classes=tuple(
            ClassCount(name, int(train[label]), int(validation[label]), int(test[label]))
            for label, name in enumerate(data.class_names)
        ),
        train=len(splits.train),
        validation=len(splits.validation),
        test=int(test.sum()),
        image_size=data.images.shape[1],
        original_sizes=_size_range(data.original_sizes),
        bad=data.bad,
        warnings=data.warnings,
        fingerprint=data.fingerprint,
    )


def _size_range(sizes: NDArray[np.int32] | None) -> tuple[int, int, int] | None:
    if sizes is None or len(sizes) == 0:
        return None
    shorter = sizes.min(axis=1)
    return int(shorter.min()), int(np.median(shorter)), int(shorter.max())
