"""The truths themselves: exact indices against plain Monte-Carlo, and simulated studies against raystudy's own stopping rule.

Estimated here by conditional means of plain random draws, by no code that the truths are made with: quasi-random points,
pick-freeze and orthonormal functions all stay out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from itertools import combinations
from typing import Any

import curves as fixtures
import numpy as np
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from toys import START, toy_spec
from truths import METRIC, Expansion, Truth, conditional, friedman, ishigami, log_measure, mixed, published, sobol_g, truths

from raystudy.records import TrialRecord
from raystudy.search.asha import Asha

pytestmark = pytest.mark.slow

N = 2**17
TOLERANCE = 0.015
"""Chance at `N` draws, and what means over bins blur: over five other seeds no error is above 0.0125 (Ishigami)."""

Columns = dict[str, NDArray[Any]]
Floats = NDArray[np.float64]
Value = Callable[[Mapping[str, NDArray[Any]]], Floats]

UNCONDITIONAL = [truth for truth in truths() if not any("when" in form for form in truth.factors.values())]
CURVES = [fixtures.separable, fixtures.non_separable, fixtures.cliff, fixtures.step, fixtures.noisy, fixtures.accuracy]


def draw(factors: Mapping[str, Mapping[str, Any]], n: int, seed: int) -> Columns:
    """Draw every factor from its distribution, conditions ignored."""
    random = np.random.default_rng(seed)
    columns: Columns = {}
    for name, form in factors.items():
        if "uniform" in form:
            low, high = form["uniform"]
            columns[name] = random.uniform(low, high, n)
        elif "log_uniform" in form:
            low, high = form["log_uniform"]
            columns[name] = np.exp(random.uniform(math.log(low), math.log(high), n))
        elif "int" in form:
            columns[name] = random.integers(form["int"][0], form["int"][1], n, endpoint=True)
        else:
            columns[name] = random.choice(np.array(form["choice"]), n)
    return columns


def cells(column: NDArray[Any], bins: int) -> NDArray[np.intp]:
    """Number the levels of a column, or as many equally filled bins."""
    _, number = np.unique(column, return_inverse=True)
    levels = int(number.max()) + 1
    return number if levels <= 2 * bins else np.asarray(number * bins // levels)


def between(values: Floats, cell: NDArray[np.intp]) -> float:
    """Return the share of the variance that lies between cells, without what their means owe to chance."""
    counts = np.maximum(np.bincount(cell), 1)
    means = np.bincount(cell, values) / counts
    spread = float(counts @ (means - values.mean()) ** 2) / len(values)
    chance = float(((values - means[cell]) ** 2).mean()) * len(counts) / len(values)
    return (spread - chance) / float(values.var())


def first_orders(columns: Columns, values: Floats) -> dict[str, float]:
    return {name: between(values, cells(column, 64)) for name, column in columns.items()}


def interactions(columns: Columns, values: Floats) -> dict[tuple[str, str], float]:
    coarse = {name: cells(column, 16) for name, column in columns.items()}
    alone = {name: between(values, cell) for name, cell in coarse.items()}
    both = {(i, j): coarse[i] * (coarse[j].max() + 1) + coarse[j] for i, j in combinations(columns, 2)}
    return {pair: between(values, cell) - alone[pair[0]] - alone[pair[1]] for pair, cell in both.items()}


def totals(value: Value, columns: Columns, fresh: Columns) -> dict[str, float]:
    """Return the variance that is left when all but one factor stay: half the mean square of the change."""
    values = value(columns)
    moved = {name: value({**columns, name: fresh[name]}) for name in columns}
    return {name: float(((values - other) ** 2).mean() / 2 / values.var()) for name, other in moved.items()}


@pytest.mark.parametrize("truth", UNCONDITIONAL, ids=lambda truth: truth.name)
def test_monte_carlo_confirms_the_exact_indices(truth: Truth) -> None:
    columns = draw(truth.factors, N, seed=1)
    values = truth.value(columns)
    assert first_orders(columns, values) == pytest.approx(truth.first_order, abs=TOLERANCE)
    assert interactions(columns, values) == pytest.approx(truth.pairs, abs=TOLERANCE)
    assert totals(truth.value, columns, draw(truth.factors, N, seed=2)) == pytest.approx(truth.total, abs=TOLERANCE)


def test_monte_carlo_confirms_the_conditional_function() -> None:
    truth = conditional()
    columns = draw(truth.factors, N, seed=1)
    values = truth.value(columns)
    found = {"c": between(values, cells(columns["c"], 64))}
    for name, level in (("x", "a"), ("y", "b")):
        active = columns["c"] == level
        inside = between(values[active], cells(columns[name][active], 64)) * float(values[active].var() / values.var())
        found[name] = float(active.mean()) * inside
    assert found == pytest.approx(truth.first_order, abs=TOLERANCE)
    assert totals(truth.value, columns, draw(truth.factors, N, seed=2)) == pytest.approx(truth.total, abs=TOLERANCE)
    assert sum(truth.first_order.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("index", "printed"),
    [
        (ishigami().first_order["x1"], 0.313905),
        (ishigami().total["x3"], 0.243684),
        (ishigami(b=0.05).first_order["x2"], 0.686895),
        (sobol_g().first_order["x2"], 0.17905),
        (sobol_g((0, 0.5, 3, 9, 99, 99)).total["x1"], 0.69009),
        (friedman().first_order["x4"], 0.34975),
        (friedman().pairs["x1", "x2"], 0.07492),
        (log_measure().first_order["learning_rate"], 0.75),
        (conditional().first_order["c"], 0.9423),
        (published().first_order["target"], 0.903),
        (published().pairs["target", "momentum"], 0.078),
        (published().first_order["momentum"], 8e-7),
    ],
)
def test_indices_are_those_in_print(index: float, printed: float) -> None:
    digits = len(f"{printed:f}".rstrip("0").partition(".")[2])
    assert index == pytest.approx(printed, abs=0.6 * 10**-digits)


def test_an_indicator_is_written_in_orthonormal_functions_exactly() -> None:
    columns = draw(fixtures.FACTORS, 200, seed=0)
    for name, level in (("frozen_depth", 18), ("optimizer", "adam")):
        expected = (columns[name] == level).astype(float)
        assert Expansion.indicator(fixtures.FACTORS, name, level)(columns) == pytest.approx(expected)


def test_a_sample_is_what_the_function_says() -> None:
    for truth in truths():
        table = truth.sample(64, seed=3)
        assert table.equals(truth.sample(64, seed=3))
        assert table.num_rows == (56 if truth.name == published().name else 64)
        columns = {name: table[name].to_numpy() for name in truth.factors}
        assert truth.value(columns) == pytest.approx(table[METRIC].to_numpy())
    assert not truths()[0].sample(64, 3).equals(truths()[0].sample(64, 4))
    assert not mixed().sample(64, 3).equals(mixed().sample(64, 3, design="random"))


def test_inactive_factors_are_null() -> None:
    table = conditional().sample(64, seed=0)
    for name, level in (("x", "a"), ("y", "b")):
        assert table[name].is_null().to_pylist() == [row != level for row in table["c"].to_pylist()]
        assert table[name].null_count == 32, "the design is balanced"


@cache
def truth_at(maker: Callable[[], fixtures.Curves], epoch: int) -> dict[str, float]:
    return maker().truth(epoch)


def at(curves: fixtures.Curves, epoch: int) -> Value:
    return lambda columns: curves.link(curves.curve(columns, np.array([float(epoch)]))[:, 0])


@pytest.mark.parametrize("epoch", [1, fixtures.BUDGET])
@pytest.mark.parametrize("maker", CURVES)
def test_monte_carlo_confirms_the_truth_of_curves(maker: Callable[[], fixtures.Curves], epoch: int) -> None:
    curves = maker()
    columns = draw(curves.factors, N, seed=1)
    found = first_orders(columns, at(curves, epoch)(columns))
    assert found == pytest.approx(truth_at(maker, epoch), abs=TOLERANCE)


@pytest.mark.parametrize("maker", [fixtures.separable, fixtures.non_separable, fixtures.noisy])
def test_at_the_budget_the_truth_is_that_of_the_final_value(maker: Callable[[], fixtures.Curves]) -> None:
    exact = fixtures.FINAL.indices()
    assert truth_at(maker, fixtures.BUDGET) == pytest.approx(exact.first_order, abs=1e-3)
    assert [round(exact.first_order[name], 3) for name in fixtures.FACTORS] == [0.478, 0.306, 0.12, 0.019, 0, 0]
    assert exact.pairs["learning_rate", "frozen_depth"] == pytest.approx(0.077)


def test_before_the_budget_the_truth_is_that_of_the_sum_of_both_expansions() -> None:
    for epoch in (1, 3, 9):
        left = math.log(fixtures.BUDGET / epoch) / math.log(fixtures.BUDGET)
        exact = fixtures.FINAL.plus(fixtures.SPEED, -left).indices().first_order
        assert truth_at(fixtures.separable, epoch) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("maker", [*CURVES, fixtures.diverging])
def test_a_speed_factor_matters_before_the_budget_only(maker: Callable[[], fixtures.Curves]) -> None:
    curves = maker()
    columns = draw(curves.factors, 1000, seed=0)
    moved = {**columns, curves.speed_only: columns[curves.speed_only][::-1]}
    assert at(curves, fixtures.BUDGET)(moved) == pytest.approx(at(curves, fixtures.BUDGET)(columns))
    assert np.abs(at(curves, 3)(moved) - at(curves, 3)(columns)).max() > 0.1
    slower = fixtures.SPEED(draw(curves.factors, N, seed=0))
    assert slower.min() > 0, "every curve rises"


def test_noise_grows_with_the_learning_rate_and_leaves_the_mean_alone() -> None:
    columns = draw(fixtures.FACTORS, 2, seed=0)
    columns["learning_rate"] = np.array([1e-5, 1e-1])
    report, own = fixtures.noisy().noise(columns).T
    assert report[1] / report[0] == pytest.approx(10)
    assert own[1] / own[0] == pytest.approx(10)
    assert at(fixtures.noisy(), 3)(columns) == pytest.approx(at(fixtures.non_separable(), 3)(columns))


def last_rows(study: fixtures.Simulated) -> dict[str, dict[str, Any]]:
    return {row["trial_id"]: row for row in study.reports.to_pylist()}


def test_trials_are_stopped_as_raystudy_would_stop_them() -> None:
    spec = toy_spec(budget={"epochs": fixtures.BUDGET}, early_stopping={"grace": 1, "reduction": 3, "keep": 0})
    judge, study = Asha(spec), fixtures.non_separable().simulate(200, 5, keep=0)
    ends = {name: row["epoch"] for name, row in last_rows(study).items()}
    decided = 0
    for row in study.reports.to_pylist():  # in the order in which they arrived
        trial = TrialRecord(row["trial_id"], int(row["trial_id"][1:]), {}, START)
        decision = judge.decide(trial, epoch=row["epoch"], value=row[fixtures.METRIC], time=START)
        if decision is not None:
            judge.record(decision)
            decided += 1
            assert decision.stop == (ends[row["trial_id"]] == row["epoch"]), decision.reason
            assert not decision.stop or row["state"] == "pruned"
    assert judge.rungs == fixtures.RUNGS
    assert decided > 250


def test_about_a_third_passes_each_rung() -> None:
    study = fixtures.separable().simulate(300, 0, keep=0)
    ends = np.array([row["epoch"] for row in last_rows(study).values()])
    assert len(ends) == 300
    for rung in fixtures.RUNGS:
        assert 0.28 < (ends > rung).sum() / (ends >= rung).sum() < 0.5, "the first to arrive pass more easily"
    assert set(ends) == {*fixtures.RUNGS, fixtures.BUDGET}
    assert study.epochs == study.reports.num_rows == ends.sum()


def test_kept_trials_reach_the_budget_and_are_the_share_asked_for() -> None:
    study = fixtures.separable().simulate(300, 0, keep=0.2)
    rows = last_rows(study).values()
    kept = [row for row in rows if row["kept"]]
    assert {row["epoch"] for row in kept} == {fixtures.BUDGET}
    assert {row["state"] for row in kept} == {"completed"}
    would_stop = len(kept) + sum(row["state"] == "pruned" for row in rows)
    assert 0.12 < len(kept) / would_stop < 0.28
    reports = study.reports.group_by("trial_id").aggregate([("kept", "min"), ("kept", "max"), ("state", "count_distinct")])
    assert reports["kept_min"].equals(reports["kept_max"])
    assert set(reports["state_count_distinct"].to_pylist()) == {1}


@pytest.mark.parametrize(("sampler", "n"), [("random", 100), ("tpe", 40)])
def test_a_seed_decides_everything(sampler: fixtures.Sampler, n: int) -> None:
    study, again, other = (fixtures.non_separable().simulate(n, seed, sampler) for seed in (3, 3, 4))
    assert study.reports.equals(again.reports)
    assert not study.reports.equals(other.reports)


def test_tpe_proposes_better_trials_than_chance() -> None:
    reports = fixtures.separable().simulate(80, 0, "tpe").reports
    table = reports.filter(pc.equal(reports["epoch"], 1))
    final = fixtures.FINAL({name: table[name].to_numpy() for name in fixtures.FACTORS})
    assert final[40:].mean() > 0.3 * fixtures.SD, "on average a random trial has 0"


def test_a_trial_that_diverges_ends_with_nan() -> None:
    study = fixtures.diverging().simulate(100, 0)
    rows = last_rows(study)
    ended = {name for name, row in rows.items() if row["state"] == "diverged"}
    broken = [row["trial_id"] for row in study.reports.to_pylist() if math.isnan(row[fixtures.METRIC])]
    assert sorted(ended) == sorted(broken)
    assert all(math.isnan(rows[name][fixtures.METRIC]) for name in ended)
    assert ended
    assert min(rows[name]["learning_rate"] for name in ended) > 1e-3


def test_an_accuracy_is_a_share() -> None:
    values = fixtures.accuracy().simulate(100, 0).reports[fixtures.METRIC].to_numpy()
    assert values.min() >= 0, "else the logit is no candidate for the response"
    assert values.max() <= 1
