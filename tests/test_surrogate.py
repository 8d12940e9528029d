"""The surrogate and what it is made of, each against the plain way to compute the same."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from raystudy.findings.curves import BENDS, Floats, Ints, Rows, compress, features
from raystudy.findings.design import Design
from raystudy.findings.draws import Draws, Points
from raystudy.findings.effects import milestones
from raystudy.findings.fitting import Fitted
from raystudy.findings.indices import surface, values_along
from raystudy.findings.left_out import leave_one_out
from raystudy.findings.measure import Measure
from raystudy.findings.observations import Observations
from raystudy.findings.response import Response, Scale, scales
from raystudy.findings.surrogate import LEVEL_VARIANCE, SLOPE_VARIANCE, TREND_VARIANCE, Surrogate, thinned
from raystudy.findings.verdict import MASS, interval, quantile

BUDGET = 27
COLUMNS = (slice(0, 1), slice(1, 4), slice(4, 5))
MEASURE = Measure.of(
    {
        "lr": {"log_uniform": [1e-4, 1e-1]},
        "pool": {"choice": ["avg", "max", "gem"]},
        "gate": {"choice": ["sgd", "adam"]},
        "momentum": {"uniform": [0.0, 0.9], "when": {"gate": "sgd"}},
    }
)
some = settings(max_examples=100, deadline=None)


def encoded(n: int, seed: int) -> Floats:
    random = np.random.default_rng(seed)
    return np.hstack([random.random((n, 1)), np.eye(3)[random.integers(3, size=n)] / math.sqrt(2), random.random((n, 1))])


def stopped_reports(n: int, budget: int, seed: int) -> tuple[Ints, Floats, Floats]:
    """Return trial, epoch and value of reports of `n` trials stopped anywhere, the first not at all, in no order."""
    random = np.random.default_rng(seed)
    lengths = [budget, *random.integers(1, budget + 1, n - 1).tolist()]
    trial = np.repeat(np.arange(n), lengths)
    epochs = np.concatenate([np.arange(1.0, length + 1) for length in lengths])
    order = random.permutation(len(trial))
    return trial[order], epochs[order], random.standard_normal(len(trial))


def some_vector(surrogate: Surrogate, number: int, **fixed: float) -> Floats:
    """Return hyperparameters near the middle of their priors; `fixed` sets all of a kind, `noise=-7.0` for instance."""
    random = np.random.default_rng(number)
    parts = []
    for name, parameter in surrogate._covariance.named_parameters():
        size, kind = parameter.numel(), name.removeprefix("log_")
        middle = parameter.detach().numpy().ravel()
        parts.append(np.full(size, fixed[kind]) if kind in fixed else middle + 0.3 * random.standard_normal(size))
    return np.concatenate(parts)


def tables(surrogate: Surrogate, vector: Floats, x: Floats) -> Floats:
    lengths = surrogate.hyperparameters(vector).lengths
    return np.stack([surrogate.table(j, length, x) for j, length in enumerate(lengths)])


def fresh(n: int = 7, budget: int = BUDGET, seed: int = 0, smoothness: float = 2.5) -> Surrogate:
    return Surrogate(encoded(n, seed), COLUMNS, compress(*stopped_reports(n, budget, seed), budget), smoothness=smoothness)


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 27])
def test_bends_vanish_at_the_budget(budget: int) -> None:
    found = features(np.arange(1.0, budget + 1), budget)
    assert found.shape == (budget, 1 + min(BENDS, budget - 1))
    assert np.all(found[:, 0] == 1)
    assert np.all(found[-1, 1:] == 0)
    assert np.linalg.matrix_rank(found) == found.shape[1], "every bend can be told from the others"


@pytest.mark.parametrize("budget", [1, 2, 3, 27])
def test_compressed_rows_lose_nothing(budget: int) -> None:
    trial, epochs, values = stopped_reports(6, budget, 1)
    few = compress(trial, epochs, values, budget)
    assert np.bincount(few.trial).max() <= 1 + BENDS
    raw = Rows(trial, features(epochs, budget), values, np.zeros(6), np.zeros(6))
    x = encoded(6, 1)
    one, other = Surrogate(x, COLUMNS, few), Surrogate(x, COLUMNS, raw)
    for seed in range(3):
        vector = some_vector(one, seed)
        assert one.loss(vector) == pytest.approx(other.loss(vector), rel=1e-5)  # but for the jitter


def test_the_likelihood_is_that_of_the_model_as_written() -> None:
    """Each report's covariance by the formulas of the module's docstring, with no line of the surrogate."""
    trial, epochs, values = stopped_reports(5, BUDGET, 2)
    x = encoded(5, 2)
    surrogate = Surrogate(x, COLUMNS, compress(trial, epochs, values, BUDGET))
    basis = features(epochs, BUDGET)
    offsets = []
    for seed in range(3):
        vector = some_vector(surrogate, seed)
        hyper = surrogate.hyperparameters(vector)
        spread = np.exp((x - 0.5) @ hyper.growth)
        final, speed = np.ones((5, 5)), np.ones((5, 5))
        for j, columns in enumerate(COLUMNS):
            r = math.sqrt(5) * cdist(x[:, columns], x[:, columns]) / hyper.lengths[j]
            matern = (1 + r + r**2 / 3) * np.exp(-r)
            final *= (1 + hyper.final_weight[j] * matern) / (1 + hyper.final_weight[j])
            speed *= (1 + hyper.speed_weight[j] * matern) / (1 + hyper.speed_weight[j])
        own = np.eye(5)
        between = [LEVEL_VARIANCE + hyper.final_scale**2 * final + own * (hyper.seed * spread) ** 2]
        ordered = [columns.start for columns in COLUMNS if columns.stop - columns.start == 1]
        trends = TREND_VARIANCE * sum(np.outer(x[:, j] - 0.5, x[:, j] - 0.5) for j in ordered)
        between += [SLOPE_VARIANCE + trends + scale**2 * speed + own * hyper.speed_rest**2 for scale in hyper.speed_scale]
        dense = sum(np.outer(basis[:, k], basis[:, k]) * one[trial][:, trial] for k, one in enumerate(between))
        dense = dense + np.diag((hyper.noise * spread[trial]) ** 2)
        exact = 0.5 * values @ np.linalg.solve(dense, values) + 0.5 * np.linalg.slogdet(dense)[1]
        surrogate._set(vector)
        offsets.append(surrogate.loss(vector) + surrogate._covariance.log_prior().item() - exact)
    assert offsets == pytest.approx([0.0] * 3, abs=2e-3)  # the jitter


@pytest.mark.parametrize("budget", [1, 2, 27])
@pytest.mark.parametrize("smoothness", [1.5, 2.5])
def test_the_gradient_is_that_of_the_loss(budget: int, smoothness: float) -> None:
    surrogate = fresh(budget=budget, smoothness=smoothness)
    vector = some_vector(surrogate, 3)
    value, gradient = surrogate.loss_and_gradient(vector)
    assert value == pytest.approx(surrogate.loss(vector))
    step = 1e-5
    numeric = [
        (surrogate.loss(vector + step * e) - surrogate.loss(vector - step * e)) / (2 * step) for e in np.eye(len(vector))
    ]
    assert gradient == pytest.approx(np.array(numeric), rel=1e-4, abs=1e-4)


def test_kernels_have_variance_one() -> None:
    surrogate = fresh()
    vector = some_vector(surrogate, 4)
    found = tables(surrogate, vector, surrogate.x)
    assert np.diagonal(found, axis1=1, axis2=2) == pytest.approx(np.ones((3, 7)))
    assert found.max() <= 1 + 1e-12
    draws = Draws(surrogate, vector, 1, 0)
    for component in draws._components:
        kernel = draws._kernel(component, draws.points(surrogate.x))
        assert np.diagonal(kernel) == pytest.approx(np.ones(7))
        assert np.linalg.eigvalsh(kernel).min() > -1e-9


def test_hyperparameters_beyond_all_bounds_are_refused_not_raised() -> None:
    surrogate = fresh()
    assert surrogate.loss(np.full(len(surrogate.mode), np.nan)) == math.inf
    assert surrogate.loss_and_gradient(np.full(len(surrogate.mode), np.nan))[0] == 1e10


def test_draws_go_through_what_was_seen_without_noise() -> None:
    surrogate = fresh(n=7)
    rows, tight = surrogate.rows, {"noise": -7.0, "seed": -7.0, "speed_rest": -7.0, "growth": 0.0}
    draws = Draws(surrogate, some_vector(surrogate, 5, **tight), 8, 1)
    points = draws.points(surrogate.x)
    for row in range(len(rows.target)):
        seen = draws.at(points, rows.weights[row])[:, rows.trial[row]]
        assert seen == pytest.approx(np.full(8, rows.target[row]), abs=0.02)


def test_draws_have_the_posteriors_mean_and_variance() -> None:
    surrogate = fresh(n=7)
    vector, x = some_vector(surrogate, 6), encoded(4, 60)
    hyper, rows = surrogate.hyperparameters(vector), surrogate.rows
    every = [Draws(surrogate, vector, 200, seed) for seed in range(10)]
    at_end = features(np.array([float(BUDGET)]), BUDGET)[0]
    values = np.concatenate([draws.at(draws.points(x), at_end) for draws in every])

    def kernel(right: Floats) -> Floats:
        # A surrogate of these configurations, to get at the tables between any two of them.
        other = Surrogate(
            right, COLUMNS, Rows(np.zeros(1, int), np.ones((1, 4)), np.zeros(1), np.zeros(len(right)), np.zeros(1))
        )
        w = hyper.final_weight[:, None, None]
        return np.asarray(LEVEL_VARIANCE + hyper.final_scale**2 * ((1 + w * tables(other, vector, x)) / (1 + w)).prod(0))

    cross = rows.weights[:, 0] * kernel(surrogate.x)[:, rows.trial]
    mean = cross @ surrogate.solve(vector, rows.target[:, None])[:, 0]
    covariance = kernel(x) - cross @ surrogate.solve(vector, cross.T)
    assert values.mean(0) == pytest.approx(mean, abs=0.15)
    assert np.cov(values.T) == pytest.approx(covariance, abs=0.2)


def test_prior_functions_have_the_kernel() -> None:
    surrogate = fresh()
    vector = some_vector(surrogate, 7)
    for k in range(2):
        covariances, means = [], []
        for seed in range(6):
            draws = Draws(surrogate, vector, 1, seed)
            draws.size = 1500
            prior = draws._prior(k)
            values = np.cos(surrogate.x @ prior.frequencies.T + prior.phases) @ prior.amplitudes
            covariances.append(values @ values.T / draws.size)
            means.append(values.mean(1))
        kernel = draws._scale(k) ** 2 * draws._kernel(prior, draws.points(surrogate.x))
        assert np.mean(covariances, axis=0) == pytest.approx(kernel, abs=0.1 * draws._scale(k) ** 2)
        assert np.mean(means, axis=0) == pytest.approx(np.zeros(7), abs=0.1 * draws._scale(k))


def draws_of_measure(**fixed: float) -> tuple[Draws, Design]:
    columns = tuple(axis.columns for axis in MEASURE.axes)
    x = MEASURE.points(np.random.default_rng(0).random((6, 4)))[0]
    surrogate = Surrogate(x, columns, compress(*stopped_reports(6, BUDGET, 8), BUDGET))
    return Draws(surrogate, some_vector(surrogate, 8, **fixed), 3, 0), Design.of(MEASURE, 16, 0, nodes=4)


@pytest.mark.parametrize("fixed", [{}, {"final_weight": -40.0, "speed_weight": -40.0}], ids=["usual", "without features"])
@pytest.mark.parametrize("name", MEASURE.names)
def test_a_factor_is_replaced_as_if_its_configurations_were_written_out(name: str, fixed: dict[str, float]) -> None:
    draws, design = draws_of_measure(**fixed)
    active = design.active(name)
    for epoch in (1.0, BUDGET):
        coefficients = features(np.array([epoch]), BUDGET)[0]
        found = values_along(draws, design, draws.points(design.x), name, coefficients)
        for node in range(len(design.nodes[name].u)):
            plain = draws.at(draws.points(design.replaced(name, node)), coefficients)
            assert found[:, active, node] == pytest.approx(plain[:, active], abs=1e-8)


@pytest.mark.parametrize("pair", [("lr", "pool"), ("pool", "lr"), ("lr", "gate"), ("gate", "pool"), ("momentum", "lr")])
def test_a_surface_is_the_mean_of_configurations_with_both_factors_replaced(pair: tuple[str, str]) -> None:
    draws, design = draws_of_measure()
    coefficients = features(np.array([3.0]), BUDGET)[0]
    found = surface(draws, design, pair, coefficients, np.exp)
    active = design.active(pair[0]) & design.active(pair[1])
    for row, column in itertools.product(*(range(len(design.nodes[name].u)) for name in pair)):
        u = design.u.copy()
        for name, node in zip(pair, (row, column), strict=True):
            u[:, design.index(name)] = design.nodes[name].u[node]
        values = np.exp(draws.at(Points(MEASURE.points(u)[0][active]), coefficients))
        assert found[:, row, column] == pytest.approx(values.mean(axis=1), rel=1e-7)


def test_fewer_draws_are_the_first_ones() -> None:
    surrogate = fresh()
    draws, end = Draws(surrogate, some_vector(surrogate, 9), 5, 0), np.eye(4)[0]
    points = draws.points(encoded(3, 9))
    assert draws.first(2).at(points, end) == pytest.approx(draws.at(points, end)[:2])


@some
@given(st.integers(1, 60), st.integers(0, 9))
def test_thinning_looks_at_no_outcome(most: int, seed: int) -> None:
    trial, epochs, values = stopped_reports(12, BUDGET, seed)
    rows, others = compress(trial, epochs, values, BUDGET), compress(trial, epochs, -3 * values**3, BUDGET)
    chosen = thinned(rows, most, seed)
    assert chosen.tolist() == thinned(others, most, seed).tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 1 or len(rows.of(chosen).target) <= most
    assert len(thinned(rows, len(rows.target), seed)) == 12


def test_a_trial_left_out_is_predicted_as_by_a_model_without_it() -> None:
    n = 8
    trial, epochs, raw = stopped_reports(n, BUDGET, 10)
    ended = {0, int(trial[0])}
    keep = (trial != 1) | (epochs == BUDGET) | (epochs == 1)
    trial, epochs, raw = trial[keep], epochs[keep], raw[keep]
    # Trial 1 has the budget's report and the first only: fewer than a curve has numbers, kept as they are.
    trial, epochs = np.append(trial, [1]), np.append(epochs, [float(BUDGET)])
    values = np.append(raw, [0.7]) * 2 + 5
    duplicate = np.unique(np.stack([trial, epochs]), axis=1, return_index=True)[1]
    trial, epochs, values = trial[duplicate], epochs[duplicate], values[duplicate]
    ended |= {1}
    response = Response.of(values, "identity")
    x = encoded(n, 10)
    surrogate = Surrogate(x, COLUMNS, compress(trial, epochs, response.forward(values), BUDGET))
    surrogate.mode = some_vector(surrogate, 10)
    fitted = Fitted(response, surrogate, np.arange(n), surrogate.mode[None], BUDGET, 0)
    off = np.zeros(n, dtype=bool)
    observed = Observations(tuple(range(n)), x, np.ones((n, 3), dtype=bool), trial, epochs, values, off, off, {})
    found, first = leave_one_out(fitted, observed)
    assert len(first.scores) == n
    assert np.isfinite(first.scores).all()
    finals = {int(t): v for t, e, v in zip(trial, epochs, values, strict=True) if e == BUDGET}
    assert len(found.seen) == len(finals) >= 2
    for position, (one, value) in enumerate(sorted(finals.items())):
        assert found.seen[position] == pytest.approx(value)
        others = trial != one
        rows = Rows(
            np.append(trial[others], one),
            np.vstack([features(epochs[others], BUDGET), np.eye(1, 4)]),
            np.append(response.forward(values[others]), 0.0),
            np.zeros(n),
            np.zeros(n),
        )
        dense = Surrogate(x, COLUMNS, rows).covariance(surrogate.mode)
        gain = np.linalg.solve(dense[:-1, :-1], dense[:-1, -1])
        mean, variance = gain @ rows.target[:-1], dense[-1, -1] - gain @ dense[:-1, -1]
        assert found.predicted[position] == pytest.approx(float(response.inverse(mean)), abs=1e-3)
        score = (float(response.forward(np.array([value]))[0]) - mean) / math.sqrt(variance)
        assert found.scores[position] == pytest.approx(score, abs=1e-3)


draws_with_weights = st.lists(st.tuples(st.floats(-1, 1), st.floats(0.01, 1)), min_size=1, max_size=25)


def mass(values: Floats, weights: Floats, low: float, high: float) -> float:
    return float(weights[(values >= low) & (values <= high)].sum())


def split(pairs: list[tuple[float, float]]) -> tuple[Floats, Floats]:
    values, weights = np.array(pairs).T
    return values, weights / weights.sum()


@some
@given(draws_with_weights)
def test_an_interval_is_the_shortest_with_its_mass(pairs: list[tuple[float, float]]) -> None:
    values, weights = split(pairs)
    found = interval(values, weights)
    assert found.value == pytest.approx(values @ weights)
    assert found.low <= found.value <= found.high
    assert mass(values, weights, found.low, found.high) >= MASS - 1e-9
    ends = [(a, b) for a in values for b in values if a <= b and mass(values, weights, a, b) >= MASS + 1e-9]
    shortest = min((b - a for a, b in ends), default=math.inf)
    stretched = found.low == found.value or found.high == found.value
    assert found.width <= shortest + 1e-9 or stretched


@some
@given(draws_with_weights, st.floats(0, 0.5))
def test_a_low_end_within_the_floor_is_nought(pairs: list[tuple[float, float]], floor: float) -> None:
    values, weights = split(pairs)
    values = np.abs(values)
    plain, found = interval(values, weights), interval(values, weights, floor=floor)
    if min(values) > floor:
        assert found == plain
    if found.low == 0:
        assert mass(values, weights, 0.0, found.high) >= MASS - 1e-9
        assert found.high <= max(float(values.max()), found.value)
    else:
        assert found == plain


@some
@given(draws_with_weights, st.floats(0.01, 0.99))
def test_a_quantile_has_its_share_below(pairs: list[tuple[float, float]], share: float) -> None:
    values, weights = split(pairs)
    found = quantile(values, weights, share)
    assert weights[values <= found].sum() >= share - 1e-9
    assert weights[values < found].sum() <= share + 1e-9


@some
@given(st.integers(1, 3000))
def test_milestones_grow_by_about_three(last: int) -> None:
    found = milestones(last)
    assert found[0] == 1
    assert found[-1] == last
    assert found == sorted(set(found))
    assert all(b / a <= 5 for a, b in pairwise(found))


def test_milestones_of_a_power_of_three() -> None:
    assert milestones(27) == [1, 3, 9, 27]
    assert milestones(1) == [1]


@pytest.mark.parametrize("scale", ["identity", "logit", "log"])
def test_a_response_goes_there_and_back(scale: Scale) -> None:
    values = np.random.default_rng(0).uniform(0.01, 0.99, 50)
    response = Response.of(values, scale)
    forward = response.forward(values)
    assert forward.mean() == pytest.approx(0, abs=1e-9)
    assert forward.std() == pytest.approx(1)
    assert response.inverse(forward) == pytest.approx(values)
    step = 1e-6
    slopes = (response.forward(values + step) - response.forward(values - step)) / (2 * step)
    assert response.log_slope(values) == pytest.approx(np.log(slopes).sum(), rel=1e-5)


def test_a_perfect_accuracy_has_a_finite_logit() -> None:
    response = Response.of(np.array([0.0, 0.5, 1.0]), "logit")
    assert np.isfinite(response.forward(np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.1, 0.9], ("identity", "logit")), ([0.5, 3.0], ("identity", "log")), ([-1.0, 3.0], ("identity",))],
)
def test_scales_are_those_the_values_admit(values: list[float], expected: tuple[Any, ...]) -> None:
    assert scales(np.array(values)) == expected


@pytest.mark.slow
def test_hyperparameters_are_drawn_from_their_posterior() -> None:
    """Of few reports the posterior is wide and skewed: the draws' mean loss is that of a long plain Metropolis chain."""
    surrogate = fresh(n=6)
    surrogate.fit()
    drawn = np.array([surrogate.loss(vector) for seed in range(8) for vector in surrogate.sample_hyperparameters(24, seed)])
    random, state, loss, seen = np.random.default_rng(0), surrogate.mode, surrogate.loss(surrogate.mode), []
    for _ in range(6000):
        other = state + 0.25 * random.standard_normal(len(state))
        if np.log(random.random()) < loss - surrogate.loss(other):
            state, loss = other, surrogate.loss(other)
        seen.append(loss)
    assert drawn.mean() == pytest.approx(np.mean(seen[1000:]), abs=1.2)
    assert drawn.std() == pytest.approx(np.std(seen[1000:]), rel=0.3)
