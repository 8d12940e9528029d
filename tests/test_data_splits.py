from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raystudy.data import fraction_subset
from raystudy.data.splits import make_splits, split_warnings
from raystudy.errors import DataError

SEEDS = st.integers(0, 2**32)
SHARES = st.floats(0.01, 0.95)
COUNTS = st.lists(st.integers(3, 60), min_size=1, max_size=6)


def shuffled_labels(counts: list[int]) -> NDArray[np.int64]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(len(labels)).permutation(labels).astype(np.int64)


def names(counts: list[int]) -> list[str]:
    return [f"class {label}" for label in range(len(counts))]


@settings(max_examples=60)
@given(counts=COUNTS, validation=SHARES, test=st.none() | SHARES, seed=SEEDS)
def test_splits_are_disjoint_sorted_complete_and_hold_every_class(
    counts: list[int], validation: float, test: float | None, seed: int
) -> None:
    labels = shuffled_labels(counts)
    splits = make_splits(labels, names(counts), validation=validation, test=test, seed=seed)
    parts = [part for part in (splits.train, splits.validation, splits.test) if part is not None]
    assert len(parts) == (2 if test is None else 3)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(labels)))
    for part in parts:
        assert (np.diff(part) > 0).all()
        assert set(labels[part]) == set(range(len(counts)))


@settings(max_examples=60)
@given(counts=COUNTS, validation=st.floats(0.05, 0.5), seed=SEEDS)
def test_each_class_gives_its_share_rounded(counts: list[int], validation: float, seed: int) -> None:
    labels = shuffled_labels(counts)
    splits = make_splits(labels, names(counts), validation=validation, test=None, seed=seed)
    for label, count in enumerate(counts):
        held_out = int((labels[splits.validation] == label).sum())
        assert held_out == 1 or abs(held_out - validation * count) <= 0.5


@given(counts=st.lists(st.integers(2, 30), min_size=2, max_size=5), seed=SEEDS)
def test_a_class_keeps_its_split_when_another_class_is_added(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    full = make_splits(labels, names(counts), validation=0.3, test=None, seed=seed)
    kept = labels[labels > 0] - 1
    without_first = make_splits(kept, names(counts)[1:], validation=0.3, test=None, seed=seed)
    others = full.validation[labels[full.validation] > 0]
    assert np.array_equal(without_first.validation + counts[0], others)


def test_the_validation_images_do_not_depend_on_a_test_split() -> None:
    labels = shuffled_labels([40, 30])
    one = make_splits(labels, ["a", "b"], validation=0.2, test=None, seed=3)
    two = make_splits(labels, ["a", "b"], validation=0.2, test=0.2, seed=3)
    assert np.array_equal(one.validation, two.validation)


def test_the_seed_decides() -> None:
    labels = shuffled_labels([40, 30])
    first, again, other = (
        make_splits(labels, ["a", "b"], validation=0.2, test=None, seed=seed).validation for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_splits_are_the_same_on_every_machine_and_version() -> None:
    labels = np.repeat(np.arange(2), 10)
    splits = make_splits(labels, ["a", "b"], validation=0.2, test=None, seed=0)
    assert splits.validation.tolist() == [7, 8, 11, 12]


def test_every_class_that_is_too_small_is_named_with_its_count() -> None:
    with pytest.raises(DataError) as caught:
        make_splits(np.array([0, 0, 0, 1, 2, 2]), ["big", "one", "two"], validation=0.2, test=0.2, seed=0)
    assert [(problem.where, problem.what) for problem in caught.value.problems] == [
        ("class 'one'", "has 1 image"),
        ("class 'two'", "has 2 images"),
    ]
    assert "at least 3" in str(caught.value)


FRACTIONS = st.lists(st.floats(0.001, 1.0), min_size=2, max_size=4)


@settings(max_examples=60)
@given(counts=COUNTS, fractions=FRACTIONS, seed=SEEDS)
def test_fractions_are_nested_stratified_and_hold_every_class(counts: list[int], fractions: list[float], seed: int) -> None:
    labels = shuffled_labels(counts)
    train = np.arange(len(labels), dtype=np.int64)
    subsets = [fraction_subset(train, labels, fraction, seed=seed) for fraction in sorted(fractions)]
    for smaller, larger in itertools.pairwise(subsets):
        assert set(smaller) <= set(larger)
    for fraction, subset in zip(sorted(fractions), subsets, strict=True):
        assert (np.diff(subset) > 0).all()
        for label, count in enumerate(counts):
            assert max(1, fraction * count - 1e-6) <= (labels[subset] == label).sum() < fraction * count + 1


@given(counts=COUNTS, seed=SEEDS)
def test_the_whole_fraction_is_the_training_split(counts: list[int], seed: int) -> None:
    labels = shuffled_labels(counts)
    train = np.arange(len(labels), dtype=np.int64)
    assert np.array_equal(fraction_subset(train, labels, 1.0, seed=seed), train)


def test_a_fraction_of_a_class_does_not_depend_on_other_classes() -> None:
    labels = shuffled_labels([20, 20, 20])
    train = np.arange(60, dtype=np.int64)
    full = fraction_subset(train, labels, 0.3, seed=1)
    fewer = fraction_subset(train[labels != 2], np.where(labels == 2, 0, labels), 0.3, seed=1)
    assert np.array_equal(full[labels[full] == 1], fewer[labels[fewer] == 1])


def test_a_fraction_is_not_rounded_up_by_floating_point() -> None:
    labels = np.zeros(100, np.int64)
    assert len(fraction_subset(np.arange(100), labels, 0.07, seed=0)) == 7


def test_a_class_without_training_images_is_named() -> None:
    with pytest.raises(DataError, match="class 1, 3"):
        fraction_subset(np.array([0, 2]), np.array([0, 1, 2, 3]), 0.5, seed=0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="above 0 and at most 1"):
        fraction_subset(np.arange(4), np.zeros(4, np.int64), fraction, seed=0)


def test_identical_images_in_two_splits_and_of_two_classes_are_reported() -> None:
    labels = np.array([0] * 6 + [1] * 6)
    digests = np.arange(12, dtype=np.uint8)[:, None].repeat(16, axis=1)
    splits = make_splits(labels, ["a", "b"], validation=0.2, test=None, seed=0)
    a, b = splits.train[0], splits.validation[-1]
    digests[b] = digests[a]
    image_names = [f"image{index}" for index in range(12)]
    warnings = split_warnings(splits, labels, names=image_names, class_names=["a", "b"], digests=digests)
    assert len(warnings) == 2
    assert "validation images with exactly the pixels of a training image: 1 of 2" in warnings[0]
    assert f"image{b} = image{a}" in warnings[0]
    assert "another class" in warnings[1]


def test_very_small_classes_are_reported() -> None:
    labels = np.array([0] * 10 + [1] * 3)
    digests = np.arange(13, dtype=np.uint8)[:, None].repeat(16, axis=1)
    splits = make_splits(labels, ["many", "few"], validation=0.2, test=None, seed=0)
    warnings = split_warnings(splits, labels, names=[""] * 13, class_names=["many", "few"], digests=digests)
    assert warnings == ["classes with fewer than 5 training images: 'few' (2)"]
