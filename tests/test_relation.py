"""What distance has to do with results: against scipy, against published data, and intervals that hold what they promise."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import permutation_test, spearmanr
from toys import toy_spec

from raystudy.errors import InputError
from raystudy.findings.transfer import (
    COVARIATES,
    LevelResults,
    Relation,
    cautions,
    joined,
    relate,
    results_by_level,
    results_of,
)
from raystudy.findings.transfer.relation import DEPTH, MEAN, RATE, TUNED

Floats = NDArray[np.float64]

TARGETS = ("Dogs", "Caltech", "Indoor", "Birds", "Flowers", "Cars", "Aircraft")
OPTIMAL = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)
"""Li et al. 2020 (arXiv 2002.11770): the best effective learning rate of an ImageNet ResNet-101 for seven targets."""


def one(x: Any, y: Any, name: str = "emd_similarity", **more: Any) -> Relation:
    """Relate a covariate to results that are known exactly (a row of them), or to draws."""
    draws = np.atleast_2d(np.asarray(y, float))
    pairs = [{name: value} | {key: values[k] for key, values in more.items()} for k, value in enumerate(x)]
    found = relate(pairs, {TUNED: draws}, covariates=(name,))
    assert len(found) == 1
    return found[0]


def rho(found: Relation) -> float:
    assert found.rho is not None, found.reason
    return found.rho.value


# Correlations and p-values


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=4, max_size=12))
@settings(max_examples=60, deadline=None)
def test_the_correlation_is_scipys_with_ties_too(pairs: list[tuple[int, int]]) -> None:
    x, y = np.array(pairs, float).T
    found = one(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert found.rho is None
        assert "the same" in found.reason
        return
    assert rho(found) == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
    assert found.rho is not None
    assert -1 <= found.rho.low <= found.rho.value <= found.rho.high <= 1
    assert rho(one(x[::-1], y[::-1])) == pytest.approx(found.rho.value, abs=1e-12)


@pytest.mark.parametrize("y", [[3, 1, 2, 5, 4, 7], [1, 1, 2, 3, 3, 3], [6, 5, 4, 3, 2, 1]])
def test_p_is_that_of_all_orders(y: list[float]) -> None:
    x = np.array([0.1, 0.2, 0.2, 0.5, 0.7, 0.9])

    def statistic(values: Any) -> float:
        return float(spearmanr(x, values).statistic)

    # scipy doubles the smaller tail; ours are the orders as far from 0, the same where there is no tie.
    orders = permutation_test((y,), statistic, permutation_type="pairings", n_resamples=np.inf, vectorized=False)
    share = np.mean(np.abs(orders.null_distribution) >= abs(orders.statistic) - 1e-9)
    assert one(x, y).p == pytest.approx(share)


def test_p_of_many_pairs_is_drawn_and_never_0() -> None:
    x = np.arange(12.0)
    assert one(x, x).p == pytest.approx(1 / 20_001)
    weak = np.random.default_rng(0).permutation(x)
    assert one(x, weak).p == pytest.approx(spearmanr(x, weak).pvalue, abs=0.02)
    assert one(x, weak) == one(x, weak)


def test_published_learning_rates_fall_with_similarity() -> None:
    # The similarities are made up: they follow the published rates but for three pairs of neighbours, which gives the
    # published rank correlation, -0.89 (p 0.007 from a t distribution).
    similarity = (0.87, 0.9, 0.84, 0.85, 0.8, 0.82, 0.79)
    found = one(similarity, [np.log10(OPTIMAL)])
    assert found.n_pairs == len(TARGETS)
    assert rho(found) == pytest.approx(-25 / 28)
    assert spearmanr(similarity, OPTIMAL).pvalue == pytest.approx(0.007, abs=5e-4)
    assert found.p == pytest.approx(0.0123, abs=1e-4)
    assert found.is_told
    assert "-0.89 (90 %: -0.98 to -0.43), p 0.012: the closer source and target, the lower the metric" in found.sentence


# Intervals


def simulated(n: int, correlation: float, noise: float, seed: int) -> tuple[Floats, Floats]:
    """Return covariates of n pairs, and draws from the posterior of their results after a measurement with `noise`."""
    random = np.random.default_rng(seed)
    pearson = 2 * math.sin(math.pi * correlation / 6)  # of normal numbers with this rank correlation
    x = random.standard_normal(n)
    truth = pearson * x + math.sqrt(1 - pearson**2) * random.standard_normal(n)
    seen, kept = truth + noise * random.standard_normal(n), 1 / (1 + noise**2)
    return x, kept * seen + math.sqrt(1 - kept) * random.standard_normal((60, n))


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 7, 12])
@pytest.mark.parametrize("correlation", [0, 0.5, -0.9])
@pytest.mark.parametrize("noise", [0, 0.5, 1.5])
def test_intervals_hold_the_correlation_of_the_population(n: int, correlation: float, noise: float) -> None:
    repetitions = 200
    held = 0
    for seed in range(repetitions):
        found = one(*simulated(n, correlation, noise, seed)).rho
        assert found is not None
        held += found.low <= correlation <= found.high
    # 0.9 promised; at 200 repetitions chance is 0.02. Too wide only where there are hardly any pairs.
    assert 0.84 <= held / repetitions <= (1 if n == 4 else 0.985)


def test_uncertain_results_make_the_interval_wider_and_never_more_certain() -> None:
    x = np.arange(8.0)
    exact = np.array([0, 3, 1, 6, 2, 5, 7, 4.0])
    widths = []
    for spread in (0, 0.5, 2, 50):
        draws = exact + spread * np.random.default_rng(0).standard_normal((400, 8))
        draws += exact - draws.mean(axis=0)  # the same posterior mean
        found = one(x, draws)
        assert rho(found) == pytest.approx(spearmanr(x, exact).statistic)
        assert found.rho is not None
        widths.append(found.rho.width)
    assert widths == sorted(widths)
    assert widths[-1] > 1.2 * widths[0]


def test_a_perfect_order_of_four_pairs_is_no_certainty() -> None:
    found = one([1, 2, 3, 4], [1, 2, 3, 4])
    assert found.rho is not None
    assert found.rho.value == pytest.approx(1)
    assert found.p == pytest.approx(2 / 24)
    assert found.rho.low < 0
    assert not found.is_told
    assert cautions([found]) == ["With 4 pairs no p-value can be below 0.083, however clear their order."]


# Where nothing can be said


@pytest.mark.parametrize(("n", "words"), [(3, "3 pairs are"), (2, "2 pairs are"), (1, "1 pair is")])
def test_fewer_than_four_pairs_give_a_reason_and_no_number(n: int, words: str) -> None:
    found = one(range(n), range(n))
    least = {3: "0.33", 2: "1", 1: "1"}[n]
    assert found.reason == f"{words} too few for a rank correlation: the smallest p-value possible is {least}."
    assert (found.rho, found.p, found.size_rho, found.is_told) == (None, None, None, False)
    assert found.reason in found.sentence


def test_no_pairs_no_relations() -> None:
    assert relate([], {TUNED: np.zeros((3, 0))}) == []
    assert cautions([]) == []


def test_what_does_not_vary_has_no_order() -> None:
    assert "all 5 pairs have the same emd_similarity" in one([1] * 5, range(5)).reason
    draws = [[3, 3, 3, 3, 3]] * 6 + [[3, 3, 3, 3, 4]] * 4
    assert one(range(5), draws).reason == (
        "all 5 pairs have the same tuned_metric with probability 0.6: there is no order to follow."
    )


def test_pairs_that_lack_a_covariate_or_a_result_are_left_out() -> None:
    found = one([1, None, 3, 4, math.nan, 6, 7], [[1, 2, math.nan, 4, 5, 6, 7.0]] * 2)
    assert found.n_pairs == 4
    assert rho(found) == pytest.approx(1)


@pytest.mark.parametrize("draws", [np.zeros(4), np.zeros((2, 5)), np.zeros((0, 4))])
def test_draws_must_have_a_column_a_pair(draws: Floats) -> None:
    with pytest.raises(InputError, match=r"results.m: has the shape .*; expected \(draws, 4\)"):
        relate([{"leep": 1.0}] * 4, {"m": draws})


def test_a_covariate_is_a_number() -> None:
    with pytest.raises(InputError, match=r"pairs\.leep: got 'far'; expected a number"):
        relate([{"leep": "far"}] * 4, {"m": np.zeros((2, 4))})


# Words


def test_the_size_stands_beside_every_measure() -> None:
    x, y = [1, 2, 3, 4, 5], [1, 2, 3, 5, 4]
    with_size = one(x, y, "a_distance", parameters=[5, 4, 3, 2, 1])
    assert with_size.size_rho == pytest.approx(-0.9)
    assert with_size.sentence.endswith("The number of parameters alone: rank correlation -0.90.")
    assert one(x, y, "a_distance", parameters=[7] * 5).sentence.endswith("The number of parameters alone: no baseline here.")
    assert "alone" not in one(x, y, "parameters").sentence


@pytest.mark.parametrize(
    ("name", "sign", "words"),
    [
        ("a_distance", 1, "the closer source and target, the lower the metric"),
        ("a_distance", -1, "the closer source and target, the higher the metric"),
        ("leep", 1, "the larger leep, the higher the metric"),
        ("parameters", -1, "the larger parameters, the lower the metric"),
    ],
)
def test_a_told_relation_says_its_direction(name: str, sign: int, words: str) -> None:
    assert words in one(range(8), [sign * np.arange(8)], name).sentence


def test_a_relation_that_is_not_told_from_none_says_so() -> None:
    found = one(range(6), [2, 1, 5, 0, 3, 4])
    assert not found.is_told
    assert "not told from none" in found.sentence
    assert "closer" not in found.sentence


def test_every_covariate_meets_every_result_and_the_many_looks_are_said() -> None:
    random = np.random.default_rng(0)
    pairs = [{name: float(random.random()) for name in (*COVARIATES, "emd", "source_images")} for _ in range(6)]
    found = relate(pairs, {TUNED: random.random((5, 6)), DEPTH: random.random((5, 6))})
    assert [(f.result, f.covariate) for f in found] == [(result, name) for result in (TUNED, DEPTH) for name in COVARIATES]
    assert cautions(found) == ["14 correlations were looked at: about 1.4 would have p below 0.1 by chance."]
    document = json.loads(json.dumps([relation.to_dict() for relation in found]))
    assert document[0]["rho"].keys() == {"value", "low", "high"}
    assert document[0]["sentence"] == found[0].sentence


@pytest.mark.slow
def test_distances_are_measured_without_the_surrogate() -> None:
    script = "import sys, raystudy.findings.transfer; sys.exit(any(name in sys.modules for name in ('torch', 'gpytorch')))"
    subprocess.run([sys.executable, "-c", script], check=True)


# Results of a study by its sources

SOURCES = ("a", "b", "c", "d", "e")
BEST_RATE = dict(zip(SOURCES, (-3.4, -2.9, -2.5, -2.1, -1.6), strict=True))
BEST_DEPTH = dict(zip(SOURCES, (5, 4, 3, 2, 1), strict=True))
PEAK = dict(zip(SOURCES, (0.92, 0.88, 0.84, 0.80, 0.75), strict=True))
FACTORS: dict[str, Any] = {
    "source": {"choice": list(SOURCES)},
    "learning_rate": {"log_uniform": [1e-4, 1e-1]},
    "frozen_depth": {"int": [0, 6]},
}
BUDGET = 9


def study(n: int = 100, sources: tuple[str, ...] = SOURCES, sign: float = 1.0, **fixed: Any) -> pa.Table:
    """Return the reports of a made-up study: the better a source, the lower its best rate; half the trials are stopped."""
    random = np.random.default_rng(0)
    rows = []
    for k in range(n):
        config: dict[str, Any] = {"source": sources[k % len(sources)], "learning_rate": 10 ** random.uniform(-4, -1)}
        config = config | {"frozen_depth": int(random.integers(0, 7))} | fixed
        source = config["source"]
        final = PEAK[source] - 0.06 * (math.log10(config["learning_rate"]) - BEST_RATE[source]) ** 2
        final += -0.008 * (config["frozen_depth"] - BEST_DEPTH[source]) ** 2 + 0.008 * random.standard_normal()
        for epoch in range(1, (BUDGET if random.random() < 0.5 else 3) + 1):
            value = sign * (final - 0.2 * (1 - math.log(epoch) / math.log(BUDGET)) ** 1.5)
            rows.append({"trial_id": f"t{k:03d}", "epoch": epoch, "m": value, **config})
    return pa.Table.from_pylist(rows)


def read(reports: pa.Table, factors: dict[str, Any] = FACTORS, **more: Any) -> LevelResults:
    settings: dict[str, Any] = {"source": "source", "metric": "m", "budget": BUDGET} | more
    return results_by_level(reports, factors, **settings)


@cache
def known() -> LevelResults:
    return read(study())


def within(draws: Floats, truth: float, least: float) -> bool:
    """Whether `truth` lies inside the middle 98 % of draws, or within `least` of their mean."""
    low, high = np.quantile(draws, [0.01, 0.99])
    return bool(low <= truth <= high) or abs(float(draws.mean()) - truth) < least


@pytest.mark.slow
def test_each_level_has_its_own_best_rate_depth_and_metric() -> None:
    found = known()
    assert (found.levels, found.n_trials, found.left_out) == (SOURCES, (20,) * 5, {})
    assert list(found.draws) == [MEAN, TUNED, RATE, DEPTH]
    assert {draws.shape for draws in found.draws.values()} == {(72, 5)}
    for k, source in enumerate(SOURCES):
        assert within(found.draws[RATE][:, k], BEST_RATE[source], 0.15)
        assert within(found.draws[DEPTH][:, k], BEST_DEPTH[source], 0.5)
        assert within(found.draws[TUNED][:, k], PEAK[source], 0.01)
    averages = [PEAK[s] - 0.06 * (0.75 + (BEST_RATE[s] + 2.5) ** 2) - 0.008 * (4 + (BEST_DEPTH[s] - 3) ** 2) for s in SOURCES]
    assert found.draws[MEAN].mean(axis=0) == pytest.approx(averages, abs=0.015)
    assert (found.draws[TUNED].mean(axis=0) > found.draws[MEAN].mean(axis=0)).all()
    assert (found.draws[TUNED].std(axis=0) > 0).all()


@pytest.mark.slow
def test_a_closer_source_is_seen_to_be_better_at_lower_rates() -> None:
    pairs = [{"emd_similarity": similarity} for similarity in (0.9, 0.8, 0.7, 0.6, 0.5)]
    tuned, rate = relate(pairs, {name: known().draws[name] for name in (TUNED, RATE)})
    assert [rho(tuned), rho(rate)] == pytest.approx([1, -1])
    assert "the closer source and target, the higher the metric" in tuned.sentence
    assert "the closer source and target, the lower the best learning rate" in rate.sentence


@pytest.mark.slow
def test_where_less_is_better_the_best_is_the_least() -> None:
    found = read(study(60, sign=-1.0), mode="min")
    assert found.draws[TUNED].mean(axis=0) == pytest.approx([-PEAK[source] for source in SOURCES], abs=0.02)
    assert found.draws[RATE].mean(axis=0) == pytest.approx([BEST_RATE[source] for source in SOURCES], abs=0.5)


@pytest.mark.slow
def test_what_does_not_vary_and_who_has_no_trial_is_left_out() -> None:
    found = read(study(40, SOURCES[:2], frozen_depth=3))
    assert found.levels == SOURCES[:2]
    assert list(found.draws) == [MEAN, TUNED, RATE]
    assert found.left_out == {
        **{f"source={level}": "no trial with it has reported" for level in SOURCES[2:]},
        DEPTH: "frozen_depth does not vary",
    }


@pytest.mark.slow
def test_studies_of_several_targets_are_put_side_by_side() -> None:
    single = read(study(40, SOURCES[:1], source="a"), source=None)
    assert (single.levels, single.n_trials) == ((None,), (40,))
    without_depth = read(study(40, SOURCES[:2], frozen_depth=3))
    too_few = read(study(8))
    both = joined([single, too_few, without_depth])
    assert {name: draws.shape for name, draws in both.items()} == dict.fromkeys((MEAN, TUNED, RATE, DEPTH), (72, 3))
    assert np.isnan(both[DEPTH]).all(axis=0).tolist() == [False, True, True]
    assert np.array_equal(both[RATE][:, 1:], without_depth.draws[RATE])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_results_and_a_scientific_factor_is_not_tuned() -> None:
    reports = study(40)
    first, second = read(reports), read(reports)
    assert all(np.array_equal(first.draws[name], second.draws[name]) for name in first.draws)
    averaged = read(reports, roles={"frozen_depth": "scientific"})
    assert (averaged.draws[TUNED].mean(axis=0) < first.draws[TUNED].mean(axis=0)).all()
    assert np.array_equal(averaged.draws[DEPTH], first.draws[DEPTH])


@pytest.mark.slow
def test_a_recorded_study_is_asked_in_its_own_words() -> None:
    spec = toy_spec(
        backbone=["efficientnet_lite0", "efficientnet_lite1"],
        factors={"learning_rate": {"log_uniform": [1e-4, 1e-1]}, "frozen_depth": {"choice": [0, "max"], "role": "nuisance"}},
        objective={"metric": "val_loss", "mode": "min"},
    )
    random = np.random.default_rng(0)
    rows = []
    for k in range(40):
        rate = 10 ** random.uniform(-4, -1)
        loss = (k % 2) + 0.3 * (math.log10(rate) + 2 + k % 2) ** 2 + 0.02 * random.standard_normal()
        config = {"backbone": spec.backbones[k % 2], "learning_rate": rate, "frozen_depth": 6 * (k // 2 % 2)}
        rows.append({"trial_id": str(k), "epoch": spec.budget.epochs, "val_loss": 1 + loss, **config})
    found = results_of(spec, pa.Table.from_pylist(rows), n_units=6)
    assert (found.source, found.levels) == ("backbone", spec.backbones)
    assert found.draws[TUNED].mean(axis=0) == pytest.approx([1, 2], abs=0.1)
    assert found.draws[RATE].mean(axis=0) == pytest.approx([-2, -3], abs=0.25)
    assert found.at("efficientnet_lite1").draws[TUNED].shape == (72, 1)
    assert (found.at("resnet18").levels, found.at("resnet18").draws) == ((), {})


@pytest.mark.parametrize(
    ("reports", "reason"),
    [
        (lambda: study(8), "8 trials with a report of m are too few: it takes at least 12, better 100"),
        (lambda: study(30).filter(pa.compute.field("epoch") < 9), "0 trials reached epoch 9: at least 3 are needed"),
        (lambda: study(30).drop(["m"]).append_column("m", [[0.5] * study(30).num_rows]), "m is 0.5 in every report"),
    ],
)
def test_too_few_trials_give_a_reason(reports: Any, reason: str) -> None:
    found = read(reports())
    assert (found.levels, found.draws, found.left_out) == ((), {}, {"levels": reason})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("learning_rate", "learning_rate: is continuous: it has no levels that are sources"),
        ("sorce", "sorce: is not a factor here; did you mean source?"),
        ("crowd", "crowd: has 65 levels; at most 64 can be read"),
    ],
)
def test_a_source_is_a_factor_with_levels(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(study(20), FACTORS | {"crowd": {"int": [0, 64]}}, source=source)


def test_a_source_that_is_not_always_there_is_refused() -> None:
    factors = FACTORS | {"pretrained": {"choice": [True, False]}}
    factors["source"] = FACTORS["source"] | {"when": {"pretrained": True}}
    reports = study(20)
    reports = reports.append_column(
        "pretrained", pa.array([int(name[1:]) % 2 == 0 for name in reports["trial_id"].to_pylist()])
    )
    with pytest.raises(InputError, match="source: has an effect only under a condition on pretrained"):
        read(reports, factors)
