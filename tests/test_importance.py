"""What is refused, what is not answered, and the arithmetic below the surrogate: nothing here fits anything."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystudy.errors import InputError
from raystudy.findings.answer import Importance
from raystudy.findings.best_region import top_share
from raystudy.findings.curves import compress, features
from raystudy.findings.effects import milestones
from raystudy.findings.importance import importance
from raystudy.findings.response import Response, scales
from raystudy.findings.verdict import MASS, interval

FACTORS: dict[str, Any] = {"lr": {"log_uniform": [1e-5, 1e-1]}, "optimizer": {"choice": ["sgd", "adamw"]}}


def table(n: int, *, epochs: int = 3, last: int | None = None, seed: int = 0, **columns: Any) -> pa.Table:
    """Return reports of `n` trials up to epoch `last`, with a metric that depends on the learning rate."""
    random = np.random.default_rng(seed)
    lr, optimizer = 10 ** random.uniform(-5, -1, n), random.choice(["sgd", "adamw"], n)
    trial, epoch = np.repeat(np.arange(n), last or epochs), np.tile(np.arange(1, (last or epochs) + 1), n)
    made = {
        "trial_id": [f"t{number}" for number in trial],
        "epoch": epoch,
        "accuracy": 0.2 + 0.1 * epoch - 0.05 * np.log10(lr[trial]) + 0.001 * random.standard_normal(len(trial)),
        "lr": lr[trial],
        "optimizer": optimizer[trial],
    }
    return pa.table(made | columns)


def ask(reports: pa.Table, **more: Any) -> Importance:
    return importance(reports, more.pop("factors", FACTORS), **{"metric": "accuracy", "budget": 3, **more})


def no_bars(answer: Importance) -> str:
    """Check that nothing is said in numbers; return what is said in words."""
    assert answer.shares
    assert all(
        share.verdict == "not identified" and share.first_order is None and share.total is None for share in answer.shares
    )
    assert answer.table().column("first_order").null_count == len(answer.shares)
    return answer.notes[0]


def test_few_trials_are_too_few() -> None:
    assert "8 trials are too few" in no_bars(ask(table(8)))


def test_a_constant_metric_has_no_variance() -> None:
    assert no_bars(ask(table(20, accuracy=[0.5] * 60))) == "accuracy is 0.5 in every report: there is no variance to explain."


def test_no_report_at_all() -> None:
    assert no_bars(ask(table(20).slice(0, 0))) == "There are no trials yet."


def test_all_diverged() -> None:
    answer = ask(table(20, accuracy=[float("nan")] * 60, state=["diverged"] * 60))
    assert no_bars(answer).startswith("All trials diverged or failed before a report")
    assert answer.n_diverged == 20


def test_without_states_a_metric_that_is_no_number_is_trouble() -> None:
    assert ask(table(20, accuracy=[float("nan")] * 60)).n_diverged == 20


def test_all_pruned_at_the_first_rung() -> None:
    said = no_bars(ask(table(40, last=1)))
    assert said == "No trial reached epoch 3 (the furthest got to 1): what matters there would be guessed."


def test_two_at_the_end_are_not_enough() -> None:
    reports = pa.concat_tables([table(40, last=1), table(2, seed=1).set_column(0, "trial_id", pa.array(["a"] * 3 + ["b"] * 3))])
    assert no_bars(ask(reports)).startswith("Only 2 trials reached epoch 3")


def test_factors_that_were_never_varied() -> None:
    assert "No factor has more than one value" in no_bars(ask(table(20, lr=[1e-3] * 60, optimizer=["sgd"] * 60)))


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        ({"epoch": [0, 2, 3] * 20}, {}, "reports.epoch: trial t0: got 0"),
        ({"epoch": [1, 2, 2] * 20}, {}, "trial t0 reports epoch 2 twice"),
        ({"epoch": [1, 2, 4] * 20}, {}, "a whole number from 1 to 3, the budget"),
        ({"lr": np.geomspace(1e-5, 1e-1, 60)}, {}, "a factor has one value throughout a trial"),
        ({"lr": [10.0] * 60}, {}, "10"),
        ({"optimizer": ["lion"] * 60}, {}, "lion"),
        ({"accuracy": ["good"] * 60}, {}, "a metric is a number"),
        ({}, {"metric": "loss"}, "has no column 'loss'"),
        ({}, {"at": 4}, "an epoch from 1 to 3"),
        ({}, {"mode": "best"}, "max or min"),
        ({}, {"budget": 0}, "a whole number of epochs"),
        ({}, {"factors": {}}, "at least one factor"),
        ({}, {"given": {"momentum": 0.9}}, "momentum"),
        ({}, {"within": "top 90%"}, "at most 50 %"),
        ({}, {"within": "momentum<1"}, "momentum"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        ask(table(20, **change), **more)
    assert said in str(caught.value)


def test_the_best_tenth_is_a_region() -> None:
    assert top_share("top 10%") == pytest.approx(0.1)
    assert top_share("Top 2.5 %") == pytest.approx(0.025)
    assert top_share("lr<0.1") is None


def test_asking_imports_neither_ray_nor_mlflow_nor_torch() -> None:
    code = "import sys, raystudy; raystudy.Importance; print([m for m in ('ray', 'mlflow', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Learning curves


@given(st.integers(2, 100))
def test_every_bend_vanishes_at_the_budget(budget: int) -> None:
    assert np.allclose(features(np.array([float(budget)]), budget)[0, 1:], 0)
    assert features(np.array([1.0]), budget)[0, 1] == pytest.approx(1)


@given(st.integers(1, 12), st.integers(0, 1000))
def test_compressed_reports_have_the_likelihood_of_all_of_them(most: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    counts = random.integers(1, most + 1, 4)
    trial = np.repeat(np.arange(4), counts)
    epochs = np.concatenate([np.arange(1.0, count + 1) for count in counts])
    values = random.standard_normal(len(trial))
    rows = compress(trial, epochs, values, 27)
    assert _log_density(rows.trial, rows.weights, rows.target) + _rest(rows.squares, rows.freedom) == pytest.approx(
        _log_density(trial, features(epochs, 27), values)
    )


def _log_density(trial: Any, weights: Any, values: Any, noise: float = 0.3) -> float:
    """Return the log density of values whose coefficients are standard normal, correlated 0.5 between trials."""
    between = np.where(np.equal.outer(trial, trial), 1.0, 0.5)
    covariance = between * (weights @ weights.T) + noise**2 * np.eye(len(values))
    _, log = np.linalg.slogdet(2 * np.pi * covariance)
    return float(-0.5 * (log + values @ np.linalg.solve(covariance, values)))


def _rest(squares: Any, freedom: Any, noise: float = 0.3) -> float:
    return float(-0.5 * (squares / noise**2 + freedom * np.log(2 * np.pi * noise**2)).sum())


def test_milestones_grow_by_about_three() -> None:
    assert milestones(27) == [1, 3, 9, 27]
    assert milestones(1) == [1]
    assert milestones(10)[0] == 1
    assert milestones(10)[-1] == 10


# Scales and intervals


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=20, unique=True))
def test_scales_there_and_back(values: list[float]) -> None:
    numbers = np.array(values)
    for scale in scales(numbers):
        response = Response.of(numbers, scale)
        assert np.allclose(response.inverse(response.forward(numbers)), numbers)


def test_a_scale_is_admitted_by_the_values() -> None:
    assert scales(np.array([0.0, 1.0])) == ("identity", "logit")
    assert scales(np.array([0.5, 3.0])) == ("identity", "log")
    assert scales(np.array([-1.0, 3.0])) == ("identity",)


@given(st.lists(st.floats(0, 1), min_size=5, max_size=60), st.integers(0, 100))
def test_an_interval_holds_its_mass(values: list[float], seed: int) -> None:
    numbers = np.array(values)
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(values)))
    found = interval(numbers, weights)
    inside = (numbers >= found.low) & (numbers <= found.high)
    assert weights[inside].sum() >= MASS - 1e-9
    assert found.low <= found.value <= found.high


def test_a_share_that_a_null_factor_reaches_begins_at_nought() -> None:
    numbers, weights = np.linspace(0.001, 0.02, 100), np.full(100, 0.01)
    found = interval(numbers, weights, floor=0.005)
    assert found.low == 0
    assert weights[numbers <= found.high].sum() == pytest.approx(MASS)
    assert interval(numbers + 0.1, weights, floor=0.005).low > 0.1
