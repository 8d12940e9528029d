"""Importance against exact answers and under early stopping: the fast part of benchmarks/importance.py."""

from __future__ import annotations

import warnings
from typing import Any

import curves as fixtures
import numpy as np
import pyarrow as pa
import pytest
import truths

from raystudy.findings.answer import Importance
from raystudy.findings.curves import compress
from raystudy.findings.design import Design
from raystudy.findings.draws import Draws
from raystudy.findings.importance import importance
from raystudy.findings.indices import values_along
from raystudy.findings.left_out import leave_one_out
from raystudy.findings.measure import Measure, sobol_points
from raystudy.findings.surrogate import Surrogate

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]

MIXED: dict[str, Any] = {
    "lr": {"log_uniform": [1e-4, 1e-1]},
    "optimizer": {"choice": ["sgd", "adam", "adamw"]},
    "momentum": {"uniform": [0.8, 0.99], "when": {"optimizer": "sgd"}},
}


def ask(reports: pa.Table, factors: Any, metric: str, budget: int, **more: Any) -> Importance:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importance(reports, factors, metric=metric, budget=budget, **{"details": False, **more})


def firsts(answer: Importance) -> dict[str, float]:
    return {share.name: share.first_order.value for share in answer.shares if share.first_order}


# The surrogate


def surrogate(n: int = 30, epochs: int = 5, noise: float = 0.1, seed: int = 0) -> tuple[Surrogate, Measure]:
    measure = Measure.of(MIXED)
    x, _ = measure.points(sobol_points(64, 3, seed)[:n])
    random = np.random.default_rng(seed)
    trial = np.repeat(np.arange(n), epochs)
    when = np.tile(np.arange(1.0, epochs + 1), n)
    values = np.sin(3 * x[trial, 0]) - x[trial, 1] / when + noise * random.standard_normal(len(trial))
    return Surrogate(x, tuple(axis.columns for axis in measure.axes), compress(trial, when, values, epochs)), measure


def test_the_gradient_is_that_of_the_loss() -> None:
    model, _ = surrogate()
    start = model.mode + 0.1 * np.random.default_rng(0).standard_normal(len(model.mode))
    _, gradient = model.loss_and_gradient(start)
    for index, unit in enumerate(np.eye(len(start))):
        slope = (model.loss(start + 1e-4 * unit) - model.loss(start - 1e-4 * unit)) / 2e-4
        assert gradient[index] == pytest.approx(slope, rel=1e-3, abs=1e-3)


def test_draws_agree_with_the_data_and_with_themselves() -> None:
    model, measure = surrogate(epochs=1, noise=0.0)
    model.fit()
    draws = Draws(model, model.mode, 3, 0)
    assert np.allclose(draws.at(draws.points(model.x), np.ones(1)), model.rows.target, atol=0.05)
    design = Design.of(measure, 16, 0, nodes=4)
    base = draws.points(design.x)
    for name, nodes in design.nodes.items():
        along = values_along(draws, design, base, name, np.ones(1))
        for node in range(len(nodes.u)):
            replaced = design.replaced(name, node)
            active = design.active(name)
            assert np.allclose(along[:, active, node], draws.at(draws.points(replaced), np.ones(1))[:, active])


def test_a_trial_left_out_is_predicted_as_without_it() -> None:
    truth = truths.linear()
    reports = truth.sample(32, seed=3)
    from raystudy.findings.fitting import fit
    from raystudy.findings.observations import observe

    measure = Measure.of(truth.factors)
    observed = observe(reports, measure, metric=truths.METRIC, budget=1)
    fitted = fit(observed, tuple(axis.columns for axis in measure.axes), 1, 0)
    found, first = leave_one_out(fitted, observed)
    model = fitted.surrogate
    others = np.arange(1, 32)
    without = Surrogate(model.x[others], model.columns, model.rows.of(others), smoothness=model.smoothness)
    whole = model.covariance(model.mode)
    weights = without.solve(model.mode, without.rows.target[:, None])[:, 0]
    predicted = float(fitted.response.inverse(np.array(whole[0, 1:] @ weights)))
    assert found.predicted[0] == pytest.approx(predicted, abs=1e-3)
    # With one epoch, the first report is the last one.
    assert first.scores == pytest.approx(found.scores, abs=1e-6)


# Exact answers


EXACT = [
    (truths.ishigami(), 128),
    (truths.log_measure(), 64),
    (truths.conditional(), 64),
    (truths.mixed(), 128),
    (truths.published(), 128),
]


@pytest.mark.parametrize(("truth", "n"), EXACT, ids=[truth.name for truth, _ in EXACT])
def test_known_indices_are_found(truth: truths.Truth, n: int) -> None:
    answer = ask(truth.sample(n, seed=1), truth.factors, truths.METRIC, 1)
    assert {share.name for share in answer.shares} == set(truth.factors)
    assert answer.check is not None
    assert answer.check.passed
    for share in answer.shares:
        assert share.first_order is not None
        assert share.total is not None
        assert share.first_order.value == pytest.approx(truth.first_order[share.name], abs=0.05)
        assert share.total.value == pytest.approx(truth.total[share.name], abs=0.05)


@pytest.mark.parametrize(("make", "sampler"), [(fixtures.separable, "random"), (fixtures.non_separable, "tpe")])
def test_stopped_trials_give_the_shares_at_the_budget(make: Any, sampler: fixtures.Sampler) -> None:
    curves = make()
    study, truth = curves.simulate(120, 1, sampler), curves.truth()
    answer = ask(study.reports, curves.factors, fixtures.METRIC, fixtures.BUDGET)
    found = firsts(answer)
    assert np.mean([abs(found[name] - value) for name, value in truth.items()]) <= 0.05
    assert {share.name for share in answer.shares[:2]} == {"learning_rate", "frozen_depth"}
    speed = next(share for share in answer.shares if share.name == curves.speed_only)
    assert speed.first_order is not None
    assert speed.first_order.low == 0


def test_a_cliff_is_found_or_not_identified() -> None:
    curves = fixtures.cliff()
    answer = ask(curves.simulate(120, 0).reports, curves.factors, fixtures.METRIC, fixtures.BUDGET)
    truth = curves.truth()
    for share in answer.shares:
        assert share.first_order is not None
        assert share.verdict == "not identified" or abs(share.first_order.value - truth[share.name]) <= 0.1


# What is asked


def test_details_a_factor_given_and_a_region() -> None:
    reports = fixtures.non_separable().simulate(60, 2).reports
    more = {"given": {"optimizer": "sgd"}, "within": "learning_rate<1e-3", "details": True, "plan": True}
    answer = ask(reports, fixtures.FACTORS, fixtures.METRIC, fixtures.BUDGET, **more)
    assert "optimizer" not in firsts(answer)
    assert answer.region == "optimizer=sgd, learning_rate<1e-3"
    assert [row.epoch for row in answer.epochs] == [1, 3, 9, 27]
    (rate,) = [effect for effect in answer.effects if effect.factor == "learning_rate"]
    assert all(float(level.value) <= 1e-3 for level in rate.levels)
    assert sum(level.probability_best for level in rate.levels) == pytest.approx(1)
    assert answer.plan is not None
    assert all(proposal.config["optimizer"] == "sgd" for proposal in answer.plan.proposals)
    assert Importance.from_dict(answer.to_dict()) == answer
    assert all(proposal.config.keys() <= fixtures.FACTORS.keys() for proposal in answer.plan.proposals)


def test_a_cliff_is_seen_and_nothing_is_claimed() -> None:
    """Where the metric jumps, shares were off by up to 0.13 with intervals a few points wide."""
    curves = fixtures.cliff()
    answer = ask(curves.simulate(200, 1).reports, curves.factors, fixtures.METRIC, fixtures.BUDGET, details=False)
    assert answer.check is not None
    assert answer.check.unforeseen_share is not None
    assert answer.check.unforeseen_share > 0.01
    assert not answer.check.passed
    assert {share.verdict for share in answer.shares} == {"not identified"}
    assert "jumps" in str(answer)


def test_the_self_check_fails_where_results_do_not_follow_from_the_curves() -> None:
    random = np.random.default_rng(0)
    n, epochs = 40, 9
    x, trial = random.random(n), np.repeat(np.arange(40), 9)
    when = np.tile(np.arange(1, epochs + 1), n)
    values = x[trial] + 0.01 * random.standard_normal(len(trial))
    # A few results are nothing like what any other trial says: heavy tails that a normal model does not have.
    values[(when == epochs) & (trial < 10)] += random.choice([-8.0, 8.0], 10)
    reports = pa.table({"trial_id": [str(i) for i in trial], "epoch": when, "y": values, "x": x[trial]})
    answer = ask(reports, {"x": {"uniform": [0.0, 1.0]}}, "y", epochs)
    assert answer.check is not None
    assert not answer.check.passed
    assert str(answer).startswith(("The self-check failed", "The trials leave"))
