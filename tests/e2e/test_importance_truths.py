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
from raystudy.findings.measure import Measure, sobol_points
from raystudy.findings.selfcheck import leave_one_out
from raystudy.findings.surrogate import Surrogate, thinned

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
    observed = observe(reports, measure, metric=_metric(reports, truth), budget=1)
    fitted = fit(observed, tuple(axis.columns for axis in measure.axes), 1, 0)
    found = leave_one_out(fitted, observed)
    model = fitted.surrogate
    others = np.arange(1, 32)
    without = Surrogate(model.x[others], model.columns, model.rows.of(others), smoothness=model.smoothness)
    whole = model.covariance(model.mode)
    weights = without.solve(model.mode, without.rows.target[:, None])[:, 0]
    predicted = float(fitted.response.inverse(np.array(whole[0, 1:] @ weights)))
    assert found.predicted[0] == pytest.approx(predicted, abs=1e-3)


def test_thinning_does_not_look_at_what_trials_reported() -> None:
    model, _ = surrogate()
    flipped = compress(model.rows.trial, np.ones(len(model.rows.trial)), -model.rows.target, 1)
    assert np.array_equal(thinned(model.rows, 40, 1), thinned(model.rows, 40, 1))
    assert len(thinned(flipped, 10**6, 0)) == 30


def _metric(reports: pa.Table, truth: truths.Truth) -> str:
    return next(str(name) for name in reports.column_names if name not in {"trial_id", "epoch", *truth.factors})


# Exact answers


EXACT = [truths.ishigami(), truths.log_measure(), truths.conditional(), truths.mixed(), truths.published()]


@pytest.mark.parametrize("truth", EXACT, ids=lambda truth: truth.name)
def test_known_indices_are_found(truth: truths.Truth) -> None:
    reports = truth.sample(128, seed=1)
    answer = ask(reports, truth.factors, _metric(reports, truth), 1)
    for share in answer.shares:
        assert share.first_order is not None
        assert share.total is not None
        assert share.first_order.value == pytest.approx(truth.first_order[share.name], abs=0.05)
        assert share.total.value == pytest.approx(truth.total[share.name], abs=0.05)


@pytest.mark.parametrize("make", [fixtures.separable, fixtures.non_separable])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
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
    answer = ask(curves.simulate(200, 0).reports, curves.factors, fixtures.METRIC, fixtures.BUDGET)
    truth = curves.truth()
    for share in answer.shares:
        assert share.first_order is not None
        assert share.verdict == "not identified" or abs(share.first_order.value - truth[share.name]) <= 0.1


# What is asked


@pytest.fixture(scope="module")
def study() -> pa.Table:
    return fixtures.non_separable().simulate(60, 2).reports


def asked(reports: pa.Table, **more: Any) -> Importance:
    return ask(reports, fixtures.FACTORS, fixtures.METRIC, fixtures.BUDGET, **more)


def test_the_same_question_has_the_same_answer_whatever_the_order_of_rows(study: pa.Table) -> None:
    first = asked(study)
    assert asked(study) == first
    rows = study.take(pa.array(np.random.default_rng(0).permutation(study.num_rows)))
    assert firsts(asked(rows)) == pytest.approx(firsts(first), abs=0.1)


def test_details_a_factor_given_and_a_region(study: pa.Table) -> None:
    answer = asked(study, given={"optimizer": "sgd"}, within="learning_rate<1e-3", details=True, plan=True)
    assert "optimizer" not in firsts(answer)
    assert answer.region == "optimizer=sgd, learning_rate<1e-3"
    assert [row.epoch for row in answer.epochs] == [1, 3, 9, 27]
    (rate,) = [effect for effect in answer.effects if effect.factor == "learning_rate"]
    assert all(float(level.value) <= 1e-3 for level in rate.levels)
    assert sum(level.probability_best for level in rate.levels) == pytest.approx(1)
    assert answer.plan is not None
    assert all(proposal.config["optimizer"] == "sgd" for proposal in answer.plan.proposals)
    assert Importance.from_dict(answer.to_dict()) == answer
    assert "x" not in {name for proposal in answer.plan.proposals for name in proposal.config if "null" in name}


def test_what_sets_the_best_apart_is_another_question(study: pa.Table) -> None:
    answer = asked(study, within="top 10%")
    assert answer.of_best
    assert all(share.total is None for share in answer.shares)
    assert sum(firsts(answer).values()) == pytest.approx(1, abs=0.1)


def test_less_is_better_turns_the_effects_and_not_the_shares(study: pa.Table) -> None:
    best, worst = asked(study, details=True), asked(study, details=True, mode="min")
    assert firsts(best) == pytest.approx(firsts(worst))
    assert best.effects[0].best.value != worst.effects[0].best.value


def test_a_level_that_no_trial_has_is_named() -> None:
    factors = fixtures.FACTORS | {"optimizer": {"choice": ["sgd", "adam", "adamw", "lion"]}}
    answer = ask(fixtures.separable().simulate(60, 3).reports, factors, fixtures.METRIC, fixtures.BUDGET)
    assert "No trial has optimizer=lion: what is said of it is a guess." in answer.notes


def test_a_factor_that_was_not_varied_is_not_identified_and_the_others_are() -> None:
    truth = truths.linear()
    reports = truth.sample(64, seed=0)
    reports = reports.set_column(reports.column_names.index("x1"), "x1", pa.array([0.5] * 64))
    random = np.random.default_rng(0)
    metric = _metric(reports, truth)
    values = 4 * np.array(reports["x2"]) + 3 * np.array(reports["x3"]) + 0.01 * random.standard_normal(64)
    answer = ask(reports.set_column(reports.column_names.index(metric), metric, pa.array(values)), truth.factors, metric, 1)
    (constant,) = [share for share in answer.shares if share.name == "x1"]
    assert constant.first_order is None
    assert constant.verdict == "not identified"
    assert firsts(answer)["x2"] == pytest.approx(16 / 25, abs=0.05)


def test_one_factor_explains_everything() -> None:
    random = np.random.default_rng(0)
    x = random.random(30)
    reports = pa.table({"trial_id": [str(i) for i in range(30)], "epoch": [1] * 30, "y": x**2, "x": x})
    (share,) = ask(reports, {"x": {"uniform": [0.0, 1.0]}}, "y", 1).shares
    assert share.first_order is not None
    assert share.first_order.value == pytest.approx(1, abs=0.02)


def test_which_factor_makes_trials_diverge() -> None:
    curves = fixtures.diverging()
    answer = ask(curves.simulate(100, 0).reports, curves.factors, fixtures.METRIC, fixtures.BUDGET)
    assert answer.n_diverged > 5
    assert answer.trouble is not None
    assert answer.trouble.shares[0].name == "learning_rate"


def test_shuffled_results_make_no_factor_important() -> None:
    truth = truths.linear()
    reports = truth.sample(64, seed=0)
    metric = _metric(reports, truth)
    shuffled = np.random.default_rng(1).permutation(np.array(reports[metric]))
    answer = ask(reports.set_column(reports.column_names.index(metric), metric, pa.array(shuffled)), truth.factors, metric, 1)
    for share in answer.shares:
        assert share.first_order is not None
        assert share.first_order.low < 0.1


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
    assert str(answer).startswith("The self-check failed") or "leave" in str(answer).split("\n")[0]
