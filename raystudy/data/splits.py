"""Which images train, validate and test; and nested fractions of the training images.

Every draw orders the images of one class by random numbers that depend on the seed and the class only. So splits are
stratified by construction, a class keeps its split when other classes come or go, and the first 10 % of such an order
lie inside the first 25 %. Only the generator's raw numbers are used: NumPy promises that these never change, but not
what `permutation` makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from raystudy.data.prepared import Splits
from raystudy.errors import DataError, Problem

Indices = NDArray[np.int64]

_SMALL_CLASS = 5
_EXAMPLES = 3


def make_splits(labels: Indices, class_names: Sequence[str], *, validation: float, test: float | None, seed: int) -> Splits:
    """Split images by shares, class by class; each class gets at least one image in every split.

    Args:
        labels: (n,), indices into `class_names`.
        class_names: of all classes; each must have images enough, see `class_size_problems`.
        validation: the share of each class that validates; 0 where another source does.
        test: the share of each class that tests, or None for no test split.
        seed: of the draw.

    Returns:
        Sorted, disjoint indices that cover all images.

    Raises:
        DataError: a class has too few images.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    shares = [share for share in (validation, test) if share]
    if problems := list(class_size_problems(class_names, counts, needed=1 + len(shares))):
        raise DataError(problems)
    parts: list[list[Indices]] = [[], [], []]
    for label, name in enumerate(class_names):
        order = _shuffled(np.flatnonzero(labels == label), seed=seed, purpose=f"split\0{name}")
        held_out = _held_out(len(order), shares)
        n_validation = held_out[0] if validation else 0
        n_test = held_out[-1] if test else 0
        for part, chosen in zip(parts, np.split(order, [n_validation, n_validation + n_test]), strict=True):
            part.append(chosen)
    validation_indices, test_indices, train_indices = map(_merge, parts)
    return Splits(train_indices, validation_indices, test_indices if test else None)


def class_size_problems(
    class_names: Sequence[str], counts: Iterable[int], *, needed: int, split: str = ""
) -> Iterator[Problem]:
    """Yield a problem for every class with fewer than `needed` images."""
    for name, count in zip(class_names, counts, strict=True):
        if count < needed:
            has = "no image" if count == 0 else "1 image" if count == 1 else f"{count} images"
            what = f"has {has}{f' for {split}' if split else ''}"
            accepted = f"needed are at least {needed}, one in each split" if needed > 1 else "at least 1 is needed"
            yield Problem(f"class {name!r}", what, accepted)


def fraction_subset(train: Indices, labels: Indices, fraction: float, *, seed: int) -> Indices:
    """Return the share `fraction` of the training images, of every class the same share, rounded up.

    Subsets of one seed are nested: a smaller fraction's images are among a larger one's.

    Args:
        train: indices of the training images.
        labels: (n,), of all images.
        fraction: in (0, 1].
        seed: of the draw.

    Returns:
        Sorted indices.

    Raises:
        DataError: the fraction is out of range, or a class has no training image.
    """
    check_fraction(train, labels, fraction)
    return _merge([order[: share_of(len(order), fraction)] for order in class_orders(train, labels, seed=seed)])


def check_fraction(train: Indices, labels: Indices, fraction: float) -> None:
    """Check that `fraction` is a share, and that every class that occurs among `labels` has a training image to give.

    Raises:
        DataError: otherwise.
    """
    if not 0 < fraction <= 1:
        raise DataError(Problem("data_fraction", f"is {fraction}", "use a share above 0 and at most 1"))
    if missing := sorted(set(np.unique(labels).tolist()) - set(np.unique(labels[train]).tolist())):
        named = ", ".join(map(str, missing))
        what = f"the training split has no image of class {named}"
        raise DataError(Problem("data_fraction", what, "each class needs at least 1 training image"))


def class_orders(indices: Indices, labels: Indices, *, seed: int) -> list[Indices]:
    """Return the images of each class that occurs among `indices`, in the order in which growing subsets take them up."""
    return [_shuffled(own, seed=seed, purpose=f"fraction\0{label}") for label, own in by_class(indices, labels)]


def by_class(indices: Indices, labels: Indices) -> list[tuple[int, Indices]]:
    """Return each class that occurs among `indices`, ascending, with its images, sorted."""
    ordered = np.sort(indices)
    grouped = ordered[np.argsort(labels[ordered], kind="stable")]
    classes, starts = np.unique(labels[grouped], return_index=True)
    ends = np.append(starts, len(grouped))[1:]
    return [(int(label), grouped[start:end]) for label, start, end in zip(classes, starts, ends, strict=True)]


def nesting_order(train: Indices, labels: Indices, *, seed: int) -> Indices:
    """Return the training images in the order in which growing fractions take them up.

    What `fraction_subset` returns lies at the front of it, up to the rounding of each class.

    Args:
        train: indices of the training images.
        labels: (n,), of all images.
        seed: of the draw, that of `fraction_subset`.
    """
    orders = class_orders(train, labels, seed=seed)
    places = np.concatenate([np.arange(len(order)) / len(order) for order in orders])
    return np.concatenate(orders)[np.argsort(places, kind="stable")]


def split_warnings(
    splits: Splits,
    labels: Indices,
    *,
    names: Sequence[str],
    class_names: Sequence[str],
    digests: NDArray[np.uint8],
) -> list[str]:
    """Return what deserves a look: classes with very few images, and identical images.

    Args:
        splits: of the images.
        labels: (n,).
        names: (n,).
        class_names: of the labels.
        digests: (n, bytes), equal exactly where the pixels are.
    """
    keys = [digest.tobytes() for digest in digests]
    held_out = {"validation": splits.validation, "test": splits.test}
    return [
        *_small_class_warnings(labels[splits.train], class_names),
        *(warning for split, other in held_out.items() if other is not None
          for warning in _overlap_warning(split, splits.train.tolist(), other.tolist(), keys, names)),
        *_contradiction_warning(keys, labels.tolist(), names),
    ]  # fmt: skip


def _held_out(n: int, shares: Sequence[float]) -> list[int]:
    """Return how many of `n` images each share holds out: at least one each, and one is left for training."""
    counts: list[int] = []
    for position, share in enumerate(shares):
        reserved = 1 + len(shares) - position - 1 + sum(counts)
        counts.append(min(max(1, math.floor(share * n + 0.5)), n - reserved))
    return counts


def share_of(n: int, fraction: float) -> int:
    """Return the share `fraction` of `n` images, rounded up."""
    return math.ceil(round(fraction * n, 9))  # rounded first: 0.07 * 100 is 7.000000000000001


def raw_draws(n: int, *, seed: int, purpose: str) -> NDArray[np.uint64]:
    """Return `n` random numbers of 64 bits, `(n,)`, that depend on the seed and the purpose only."""
    words = np.frombuffer(blake2b(purpose.encode(), digest_size=16).digest(), "<u4").tolist()
    return np.asarray(np.random.PCG64(np.random.SeedSequence([seed, *words])).random_raw(n), dtype=np.uint64)


def _shuffled(indices: Indices, *, seed: int, purpose: str) -> Indices:
    return indices[np.argsort(raw_draws(len(indices), seed=seed, purpose=purpose), kind="stable")]


def _merge(parts: Sequence[Indices]) -> Indices:
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _small_class_warnings(train_labels: Indices, class_names: Sequence[str]) -> Iterator[str]:
    counts = np.bincount(train_labels, minlength=len(class_names))
    small = [f"{name!r} ({count})" for name, count in zip(class_names, counts.tolist(), strict=True) if count < _SMALL_CLASS]
    if small:
        shown = ", ".join(small[:_EXAMPLES]) + (", ..." if len(small) > _EXAMPLES else "")
        yield f"classes with fewer than {_SMALL_CLASS} training images: {shown}"


def _overlap_warning(
    split: str, train: Sequence[int], other: Sequence[int], keys: Sequence[bytes], names: Sequence[str]
) -> Iterator[str]:
    twin_of = {keys[index]: index for index in train}
    twins = [(index, twin_of[keys[index]]) for index in other if keys[index] in twin_of]
    if twins:
        examples = ", ".join(f"{names[index]} = {names[twin]}" for index, twin in twins[:_EXAMPLES])
        yield (
            f"{split} images with exactly the pixels of a training image: {len(twins)} of {len(other)} "
            f"(e.g. {examples}); the {split} accuracy looks better than it is"
        )


def _contradiction_warning(keys: Sequence[bytes], labels: Sequence[int], names: Sequence[str]) -> Iterator[str]:
    """Find identical images with different labels."""
    first: dict[bytes, int] = {}
    twins = [(first.setdefault(key, index), index) for index, key in enumerate(keys)]
    pairs = [f"{names[twin]} = {names[index]}" for twin, index in twins if labels[twin] != labels[index]]
    if pairs:
        examples = ", ".join(pairs[:_EXAMPLES])
        yield f"images with exactly the pixels of an image of another class: {len(pairs)} (e.g. {examples})"
