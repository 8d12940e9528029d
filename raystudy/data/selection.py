"""What one trial trains and validates on: which of the images, and under which labels.

Every draw depends on the study's seed and on the class, never on a trial's number. So trials differ in their data just as their
factors do: fewer images of a class are among more of it, a longer tail is inside a shorter one, two classes are among
four, and a label that is wrong at some noise is wrong in the same way at any higher one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raystudy.data.prepared import Splits
from raystudy.data.splits import Indices, by_class, check_fraction, class_orders, nesting_order, raw_draws, share_of
from raystudy.errors import DataError, Problem


@dataclass(frozen=True, slots=True)
class Selection:
    """How much of the data a trial takes; by default all of it, as it is.

    Attributes:
        data_fraction: share of each class's training images, in (0, 1], rounded up.
        images_per_class: at most so many training images of each class; 0 sets no limit.
        class_imbalance: images of the most frequent class over those of the least frequent one, at least 1.
        label_noise: share of the training images that get a wrong label, in [0, 1).
        categories: how many classes there are to train and validate on; 0 is all.
    """

    data_fraction: float = 1.0
    images_per_class: int = 0
    class_imbalance: float = 1.0
    label_noise: float = 0.0
    categories: int = 0


@dataclass(frozen=True, slots=True)
class Selected:
    """What a trial takes of the data. Indices are those of all images.

    Attributes:
        train: the images to train on, sorted.
        validation: the images to validate on, sorted.
        labels: (n,), of all images; wrong for some of `train` where there is label noise.
        order: all training images of the classes that are taken, those first that small selections hold.
    """

    train: Indices
    validation: Indices
    labels: Indices
    order: Indices


def select(wanted: Selection, splits: Splits, labels: Indices, *, n_classes: int, seed: int) -> Selected:
    """Return what a trial trains and validates on.

    Args:
        wanted: how much.
        splits: of all images.
        labels: (n,), of all images, from 0 to `n_classes` - 1.
        n_classes: the number of classes.
        seed: of the draws, the study's.

    Raises:
        DataError: there are fewer classes than `categories`, a class has no training image, no validation image is left, or
            the fraction is out of range.
    """
    check_fraction(splits.train, labels, wanted.data_fraction)
    train, validation = splits.train, splits.validation
    if wanted.categories:
        classes = _drawn_categories(wanted.categories, labels[train], n_classes=n_classes, seed=seed)
        train, validation = (part[np.isin(labels[part], classes)] for part in (train, validation))
        if len(validation) == 0:
            what = f"no validation image is of the {wanted.categories} classes that are drawn"
            raise DataError(Problem("categories", what, "each class needs at least 1 validation image"))
    chosen = _chosen(wanted, train, labels, seed=seed)
    given = labels
    if wanted.label_noise:
        given = noisy_labels(labels, train, chosen, noise=wanted.label_noise, seed=seed)
    return Selected(chosen, validation, given, nesting_order(train, labels, seed=seed))


def category_order(n_classes: int, *, seed: int) -> Indices:
    """Return the labels 0 to `n_classes` - 1 in the order in which a growing number of categories takes them up."""
    return np.argsort(_class_draws(np.arange(n_classes), seed=seed, purpose="category"), kind="stable")


def long_tail(counts: Sequence[int], ranks: Sequence[int], imbalance: float) -> list[int]:
    """Return how many images of each class an exponential long tail leaves.

    The class of rank r among K keeps at most n * imbalance ** (-r / (K - 1)) of its images, where n is the largest count:
    Cui et al. 2019 (arXiv 1901.05555) and Cao et al. 2019 (arXiv 1906.07413), who start from classes of one size. Where
    sizes differ, a class that has fewer images than its place in the profile keeps all of them.

    Args:
        counts: (K,), how many images each class has; at least 1 each.
        ranks: (K,), each class's place in the profile: 0 the most frequent, K - 1 the least frequent.
        imbalance: of the first class to the last one, at least 1.

    Returns:
        (K,), at least 1 each; none grows when the imbalance does.
    """
    most, last = max(counts), max(len(counts) - 1, 1)
    ceilings = (most * imbalance ** (-rank / last) for rank in ranks)
    # Rounded first: 100 * 10 ** -1 must be 10, whatever the last bit of the power.
    return [min(count, max(1, math.floor(round(ceiling, 9)))) for count, ceiling in zip(counts, ceilings, strict=True)]


def noisy_labels(labels: Indices, train: Indices, chosen: Indices, *, noise: float, seed: int) -> Indices:
    """Return the labels with those of a share of the chosen images replaced by other classes, drawn uniformly.

    Every training image has a place in the order in which labels go wrong, and a wrong label, both whatever the noise is.

    Args:
        labels: (n,), of all images.
        train: indices of all training images of the classes that are taken.
        chosen: those that the trial trains on, among `train`.
        noise: share of `chosen`, in [0, 1), rounded to whole images.
        seed: of the draw.

    Returns:
        (n,), a copy; as given where there is one class only.
    """
    noisy, groups = labels.copy(), by_class(train, labels)
    classes = np.array([label for label, _ in groups], dtype=np.int64)
    if len(classes) < 2:
        return noisy
    turn, wrong = np.zeros(len(labels), np.uint64), np.zeros_like(labels)
    for label, own in groups:
        turn[own] = raw_draws(len(own), seed=seed, purpose=f"label noise\0{label}")
        others = classes[classes != label]
        drawn = raw_draws(len(own), seed=seed, purpose=f"wrong label\0{label}")
        wrong[own] = others[(drawn % np.uint64(len(others))).astype(np.int64)]
    n_wrong = math.floor(round(noise * len(chosen), 9) + 0.5)
    hit = chosen[np.argsort(turn[chosen], kind="stable")[:n_wrong]]
    noisy[hit] = wrong[hit]
    return noisy


def _drawn_categories(number: int, train_labels: Indices, *, n_classes: int, seed: int) -> Indices:
    if number > n_classes:
        what = f"got {number}, but the data have {n_classes} {'class' if n_classes == 1 else 'classes'}"
        raise DataError(Problem("categories", what, f"expected at most {n_classes}, or 0 for all"))
    order = category_order(n_classes, seed=seed)
    # What is timed only has images of one class.
    return order[np.isin(order, train_labels)][:number]


def _chosen(wanted: Selection, train: Indices, labels: Indices, *, seed: int) -> Indices:
    orders = class_orders(train, labels, seed=seed)
    limit = wanted.images_per_class or len(labels)
    counts = [min(share_of(len(order), wanted.data_fraction), limit) for order in orders]
    if wanted.class_imbalance > 1:
        draws = _class_draws(np.unique(labels[train]), seed=seed, purpose="imbalance")
        ranks = np.argsort(np.argsort(draws, kind="stable"))
        counts = long_tail(counts, ranks.tolist(), wanted.class_imbalance)
    return np.sort(np.concatenate([order[:count] for order, count in zip(orders, counts, strict=True)]))


def _class_draws(classes: Indices, *, seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return a number for each class that depends on the seed and that class only."""
    return np.concatenate([raw_draws(1, seed=seed, purpose=f"{purpose}\0{label}") for label in classes])
