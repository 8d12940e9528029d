"""Importance from learning curves that ASHA stopped, against the truth: more in `benchmarks/importance.py`."""

from __future__ import annotations

import numpy as np
import pytest
from curves import BUDGET, METRIC, Curves, Sampler, cliff, non_separable, separable

from raystudy.findings.answer import Importance
from raystudy.findings.importance import importance

pytestmark = pytest.mark.slow

TRUTHS: dict[str, dict[str, float]] = {}


def truth_of(curves: Curves) -> dict[str, float]:
    if curves.name not in TRUTHS:
        TRUTHS[curves.name] = curves.truth()
    return TRUTHS[curves.name]


def explained(curves: Curves, n: int, seed: int, sampler: Sampler) -> Importance:
    reports = curves.simulate(n, seed, sampler).reports
    return importance(reports, curves.factors, metric=METRIC, budget=BUDGET, seed=seed, details=False)


def errors(curves: Curves, answer: Importance) -> list[float]:
    truth = truth_of(curves)
    found = {share.name: share.first_order.value for share in answer.shares if share.first_order is not None}
    assert found.keys() == truth.keys(), "every factor has a share"
    return [abs(found[name] - share) for name, share in truth.items()]


def first_two(curves: Curves) -> set[str]:
    truth = truth_of(curves)
    return set(sorted(truth, key=lambda name: -truth[name])[:2])


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("curves", [separable(), non_separable()], ids=lambda curves: curves.name)
def test_120_trials(curves: Curves, sampler: Sampler) -> None:
    answers = [explained(curves, 120, seed, sampler) for seed in range(2)]
    assert np.mean([errors(curves, answer) for answer in answers]) <= 0.05
    for answer in answers:
        assert answer.n_completed < 60, "most trials were stopped"
        assert {share.name for share in answer.shares[:2]} == first_two(curves)
        (speed,) = [share for share in answer.shares if share.name == curves.speed_only]
        assert speed.first_order is not None
        assert speed.first_order.low == 0
        assert answer.check is not None
        assert answer.check.passed


def test_300_trials() -> None:
    curves = non_separable()
    answer = explained(curves, 300, 0, "random")
    assert np.mean(errors(curves, answer)) <= 0.03
    assert {share.name for share in answer.shares[:2]} == first_two(curves)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_cliff_is_right_on_average_or_not_identified(seed: int) -> None:
    curves = cliff()
    answer = explained(curves, 200, seed, "random")
    identified = all(share.verdict != "not identified" for share in answer.shares)
    assert not identified or np.mean(errors(curves, answer)) <= 0.06
    assert answer.shares[0].name == "learning_rate"
