"""The best of a group of configurations, by functions of which none is the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystudy.findings.measure import Measure
from raystudy.findings.tuning import QUESTIONS, TUNINGS, best_of_groups, tuning_design

EACH = 16
SIZE = QUESTIONS * EACH
EVERYWHERE = np.ones(SIZE, dtype=bool)


@given(st.integers(0, 99), st.integers(1, 5), st.integers(1, 4), st.floats(0.02, 1))
def test_it_is_the_best_on_average_and_every_function_is_read_there(seed: int, size: int, nodes: int, share: float) -> None:
    random = np.random.default_rng(seed)
    values, active = random.standard_normal((size, SIZE, nodes)), random.random(SIZE) < share
    active[0] = True
    found = best_of_groups(values, active)
    assert found.shape == (size, nodes)
    groups = [np.flatnonzero(active[start : start + EACH]) + start for start in range(0, SIZE, EACH)]
    best = [values[:, group].mean(axis=0).max(axis=0) for group in groups if len(group)]
    assert found.mean(axis=0) == pytest.approx(np.mean(best, axis=0))
    each = [values[:, group].max(axis=1) for group in groups if len(group)]
    assert np.all(found <= np.mean(each, axis=0) + 1e-12)


def test_what_nobody_has_looked_at_is_not_credited_with_the_best_that_may_be_there() -> None:
    noise = np.random.default_rng(0).standard_normal((48, SIZE, 1))
    assert noise.reshape(48, QUESTIONS, EACH).max(axis=2).mean() > 1.5
    assert abs(best_of_groups(noise, EVERYWHERE).mean()) < 0.5


def test_scientific_factors_are_the_same_within_a_group_and_nuisance_factors_are_not() -> None:
    measure = Measure.of({"dropout": {"uniform": [0.0, 0.5]}, "learning_rate": {"log_uniform": [1e-4, 1e-1]}})
    grouped = tuning_design(measure, ["dropout"], 0).u.reshape(QUESTIONS, TUNINGS, -1)
    dropout = grouped[:, :, measure.names.index("dropout")]
    assert np.ptp(dropout, axis=1) == pytest.approx(np.zeros(QUESTIONS))
    assert sorted((dropout[:, 0] * QUESTIONS).astype(int)) == list(range(QUESTIONS)), "spread over the whole factor"
    assert np.ptp(grouped[:, :, measure.names.index("learning_rate")], axis=1).min() > 0.5
