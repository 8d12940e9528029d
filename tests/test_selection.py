"""What a trial takes of the data: sizes, nesting, seeds; and that nothing else moves."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from raystudy.data import Selected, Selection, Splits, category_order, class_orders, fraction_subset, nesting_order, select
from raystudy.data.selection import long_tail, noisy_labels
from raystudy.errors import DataError

SEEDS = st.integers(0, 2**32)
COUNTS = st.lists(st.integers(2, 40), min_size=2, max_size=6)
FRACTIONS = st.floats(0.01, 1.0)
LIMITS = st.integers(0, 45)
IMBALANCES = st.floats(1, 1000)
NOISES = st.floats(0, 0.9)

selections = st.builds(Selection, FRACTIONS, LIMITS, IMBALANCES, NOISES)


class Pool:
    """Images of so many of each class in a random order; every third of a class validates, at least one."""

    def __init__(self, counts: list[int]) -> None:
        labels = np.repeat(np.arange(len(counts)), counts)
        self.labels = np.random.default_rng(len(labels)).permutation(labels).astype(np.int64)
        held_out = [np.flatnonzero(self.labels == label)[: max(1, count // 3)] for label, count in enumerate(counts)]
        validation = np.sort(np.concatenate(held_out))
        self.splits = Splits(np.setdiff1d(np.arange(len(labels)), validation), validation, None)
        self.n_classes = len(counts)

    def select(self, wanted: Selection, seed: int = 0) -> Selected:
        return select(wanted, self.splits, self.labels, n_classes=self.n_classes, seed=seed)

    def sizes(self, selected: Selected) -> NDArray[np.int64]:
        return np.bincount(self.labels[selected.train], minlength=self.n_classes)


def is_inside(smaller: Selected, larger: Selected) -> bool:
    return set(smaller.train.tolist()) <= set(larger.train.tolist())


@given(COUNTS, FRACTIONS, SEEDS)
def test_by_default_a_trial_takes_its_fraction_as_it_is(counts: list[int], fraction: float, seed: int) -> None:
    pool = Pool(counts)
    selected = pool.select(Selection(fraction), seed)
    assert np.array_equal(selected.train, fraction_subset(pool.splits.train, pool.labels, fraction, seed=seed))
    assert np.array_equal(selected.order, nesting_order(pool.splits.train, pool.labels, seed=seed))
    assert selected.validation is pool.splits.validation
    assert selected.labels is pool.labels


@settings(max_examples=60)
@given(COUNTS, selections, SEEDS)
def test_whatever_is_taken_is_training_images_of_every_class_each_once(counts: list[int], wanted: Selection, seed: int) -> None:
    pool = Pool(counts)
    selected = pool.select(wanted, seed)
    assert (np.diff(selected.train) > 0).all()
    assert set(selected.train) <= set(pool.splits.train)
    assert pool.sizes(selected).min() >= 1
    assert set(selected.order) == set(pool.splits.train)
    again = pool.select(wanted, seed)
    assert np.array_equal(selected.train, again.train)
    assert np.array_equal(selected.labels, again.labels)


@settings(max_examples=60)
@given(COUNTS, selections, SEEDS)
def test_of_each_class_the_first_of_its_order_are_taken(counts: list[int], wanted: Selection, seed: int) -> None:
    pool = Pool(counts)
    selected = pool.select(wanted, seed)
    for order, size in zip(class_orders(pool.splits.train, pool.labels, seed=seed), pool.sizes(selected), strict=True):
        assert set(order[:size]) <= set(selected.train)


# images_per_class


@settings(max_examples=60)
@given(COUNTS, FRACTIONS, st.integers(1, 45), SEEDS)
def test_the_smaller_of_fraction_and_shots_rules_in_each_class(
    counts: list[int], fraction: float, limit: int, seed: int
) -> None:
    pool = Pool(counts)
    of_fraction = pool.sizes(pool.select(Selection(fraction), seed))
    both = pool.select(Selection(fraction, limit), seed)
    assert np.array_equal(pool.sizes(both), np.minimum(of_fraction, limit))
    assert is_inside(both, pool.select(Selection(fraction), seed))


@given(COUNTS, st.lists(st.integers(1, 45), min_size=2, max_size=4), SEEDS)
def test_fewer_shots_are_among_more(counts: list[int], limits: list[int], seed: int) -> None:
    pool = Pool(counts)
    growing = [pool.select(Selection(images_per_class=limit), seed) for limit in [*sorted(limits), 0]]
    assert all(is_inside(smaller, larger) for smaller, larger in itertools.pairwise(growing))


# class_imbalance


@settings(max_examples=60)
@given(COUNTS, selections, st.lists(IMBALANCES, min_size=2, max_size=4), SEEDS)
def test_a_longer_tail_is_inside_a_shorter_one(
    counts: list[int], wanted: Selection, imbalances: list[float], seed: int
) -> None:
    pool = Pool(counts)
    shrinking = [pool.select(replace(wanted, class_imbalance=value), seed) for value in [1.0, *sorted(imbalances)]]
    assert all(is_inside(smaller, larger) for larger, smaller in itertools.pairwise(shrinking))


@pytest.mark.parametrize("imbalance", [1.0, 2.0, 10.0, 100.0])
def test_classes_of_one_size_become_the_published_profile(imbalance: float) -> None:
    pool = Pool([150] * 10)
    sizes = pool.sizes(pool.select(Selection(class_imbalance=imbalance), seed=4))
    profile = [int(100 * imbalance ** (-k / 9) + 1e-9) for k in range(10)]
    assert sorted(sizes.tolist(), reverse=True) == profile
    assert sizes.max() / sizes.min() == imbalance


def test_which_class_is_frequent_is_drawn_by_the_seed() -> None:
    pool = Pool([60] * 5)
    wanted = Selection(class_imbalance=20)
    rankings = {tuple(np.argsort(-pool.sizes(pool.select(wanted, seed)), kind="stable").tolist()) for seed in range(30)}
    assert len(rankings) > 20
    assert {ranking[0] for ranking in rankings} == set(range(5))


def test_the_tail_starts_from_what_fraction_and_shots_leave() -> None:
    pool = Pool([90, 90, 90])
    assert sorted(pool.sizes(pool.select(Selection(images_per_class=16, class_imbalance=16)))) == [1, 4, 16]


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), IMBALANCES, st.randoms())
def test_a_profile_keeps_an_image_of_each_class_and_adds_none(counts: list[int], imbalance: float, random: object) -> None:
    ranks = list(range(len(counts)))
    random.shuffle(ranks)  # type: ignore[attr-defined]
    kept = long_tail(counts, ranks, imbalance)
    assert all(1 <= few <= count for few, count in zip(kept, counts, strict=True))
    assert long_tail(counts, ranks, 1.0) == counts


# label_noise


@settings(max_examples=60)
@given(COUNTS, selections, SEEDS)
def test_so_many_training_labels_are_wrong_and_no_other(counts: list[int], wanted: Selection, seed: int) -> None:
    pool = Pool(counts)
    before = pool.labels.copy()
    selected = pool.select(wanted, seed)
    wrong = np.flatnonzero(selected.labels != pool.labels)
    assert set(wrong) <= set(selected.train)
    assert abs(len(wrong) - wanted.label_noise * len(selected.train)) <= 0.5 + 1e-6
    assert np.array_equal(pool.labels, before)
    assert np.array_equal(selected.train, pool.select(replace(wanted, label_noise=0), seed).train)


@settings(max_examples=60)
@given(COUNTS, selections, st.lists(NOISES, min_size=2, max_size=4), SEEDS)
def test_a_label_once_wrong_stays_wrong_in_the_same_way(
    counts: list[int], wanted: Selection, noises: list[float], seed: int
) -> None:
    pool = Pool(counts)
    growing = [pool.select(replace(wanted, label_noise=noise), seed).labels for noise in sorted(noises)]
    for less, more in itertools.pairwise(growing):
        wrong = less != pool.labels
        assert np.array_equal(less[wrong], more[wrong])


def test_an_image_that_is_wrong_is_taken_for_the_same_class_in_any_fraction() -> None:
    pool = Pool([90, 90, 90, 90])
    few, all_of_them = (pool.select(Selection(fraction, label_noise=0.5)).labels for fraction in (0.3, 1.0))
    both = (few != pool.labels) & (all_of_them != pool.labels)
    assert both.sum() > 10
    assert np.array_equal(few[both], all_of_them[both])


def test_wrong_labels_are_uniform_over_the_other_classes_and_over_the_images() -> None:
    labels = np.repeat(np.arange(4), 3000)
    everything = np.arange(len(labels))
    noisy = noisy_labels(labels, everything, everything, noise=0.4, seed=1)
    counts = np.bincount(labels * 4 + noisy, minlength=16).reshape(4, 4)
    assert counts.sum() - counts.trace() == 4800
    off_diagonal = counts[~np.eye(4, dtype=bool)]
    assert np.abs(off_diagonal - 400).max() < 5 * 20  # five standard deviations of a count of 400


def test_there_is_nothing_to_mistake_one_class_for() -> None:
    labels = np.zeros(10, np.int64)
    everything = np.arange(10)
    assert np.array_equal(noisy_labels(labels, everything, everything, noise=0.5, seed=0), labels)


# categories


@given(st.integers(1, 50), SEEDS)
def test_the_order_of_classes_holds_each_once_and_keeps_it_when_classes_are_added(n: int, seed: int) -> None:
    order = category_order(n + 1, seed=seed)
    assert sorted(order.tolist()) == list(range(n + 1))
    assert order[order < n].tolist() == category_order(n, seed=seed).tolist()


def test_the_order_of_classes_is_the_same_on_every_machine_and_version() -> None:
    assert category_order(10, seed=0).tolist() == [7, 5, 9, 4, 3, 1, 0, 6, 8, 2]
    assert len({tuple(category_order(5, seed=seed)) for seed in range(40)}) > 25


@settings(max_examples=60)
@given(COUNTS, selections, SEEDS, st.data())
def test_so_many_classes_are_trained_and_validated_on_and_nothing_else_changes(
    counts: list[int], wanted: Selection, seed: int, data: st.DataObject
) -> None:
    pool = Pool(counts)
    number = data.draw(st.integers(2, len(counts)))
    clean = replace(wanted, label_noise=0, class_imbalance=1)
    some, everything = pool.select(replace(clean, categories=number), seed), pool.select(clean, seed)
    classes = category_order(len(counts), seed=seed)[:number]
    for taken, all_of_them in ((some.train, everything.train), (some.validation, everything.validation)):
        assert set(pool.labels[taken]) == set(classes)
        assert np.array_equal(taken, all_of_them[np.isin(pool.labels[all_of_them], classes)])
    assert set(some.order) == set(pool.splits.train[np.isin(pool.labels[pool.splits.train], classes)])
    noisy = pool.select(replace(wanted, categories=number), seed)
    assert set(noisy.labels[noisy.train]) <= set(classes)
    assert set(noisy.train) <= set(some.train)


@given(COUNTS, SEEDS)
def test_few_categories_are_among_more_and_all_of_them_are_all(counts: list[int], seed: int) -> None:
    pool = Pool(counts)
    growing = [pool.select(Selection(categories=number), seed) for number in range(2, len(counts) + 1)]
    assert all(is_inside(smaller, larger) for smaller, larger in itertools.pairwise(growing))
    assert np.array_equal(growing[-1].train, pool.splits.train)
    assert np.array_equal(growing[-1].validation, pool.splits.validation)


def test_more_categories_than_classes_are_refused() -> None:
    with pytest.raises(DataError, match="categories: got 4, but the data have 3 classes; expected at most 3"):
        Pool([5, 5, 5]).select(Selection(categories=4))


def test_categories_without_validation_images_are_refused() -> None:
    pool = Pool([5, 5, 5])
    last = category_order(3, seed=0)[-1]
    validation = pool.splits.validation[pool.labels[pool.splits.validation] == last]
    with pytest.raises(DataError, match="no validation image is of the 2 classes that are drawn"):
        select(Selection(categories=2), replace(pool.splits, validation=validation), pool.labels, n_classes=3, seed=0)


def test_images_of_one_class_only_as_in_what_is_timed_are_taken_whatever_the_categories() -> None:
    pool = Pool([20])
    selected = select(Selection(1.0, 5, 50, 0.4, 3), pool.splits, pool.labels, n_classes=10, seed=0)
    assert len(selected.train) == 5
    assert np.array_equal(selected.validation, pool.splits.validation)
    assert np.array_equal(selected.labels, pool.labels)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_out_of_range_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="above 0 and at most 1"):
        Pool([5, 5]).select(Selection(fraction))
