"""The search space: every configuration is within bounds and conditions, and drawn under the declared distribution."""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from strategies import N_UNITS, Plain, studies

from raystudy.errors import SpecError
from raystudy.factors import PROBE_DEPTH, Scalar
from raystudy.space import Space, levels, quantile
from raystudy.spec import Factor, StudySpec

some = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
optuna.logging.set_verbosity(optuna.logging.WARNING)
unit_interval = st.floats(0, 1)


def space(factors: Plain, *, fixed: Plain | None = None, backbone: Any = "efficientnet_lite0") -> Space:
    data = {"name": "s", "data": {"source": "sklearn:digits"}, "backbone": backbone, "factors": factors, "fixed": fixed or {}}
    return Space.of(StudySpec.from_dict(data), n_units=N_UNITS)


def check_configuration(spec: StudySpec, config: Mapping[str, Scalar]) -> None:
    """Check `config` against the study file itself, not against the distributions made of it."""
    known = {**spec.constants(), **config}
    for name, factor in spec.all_factors.items():
        assert (name in config) == all(_meets(known.get(parent), wanted) for parent, wanted in (factor.when or {}).items())
        if name in config:
            check_value(factor, config[name])
    assert config.keys() <= spec.all_factors.keys()


def _meets(value: Scalar | None, wanted: Any) -> bool:
    values = wanted if isinstance(wanted, tuple) else (wanted,)
    return value in values or (value == N_UNITS and PROBE_DEPTH in values)


def check_value(factor: Factor, value: Scalar) -> None:
    if factor.choice is not None:
        assert value in factor.choice or (value == N_UNITS and PROBE_DEPTH in factor.choice)
        return
    low, high = (N_UNITS if bound == PROBE_DEPTH else bound for bound in factor.bounds)
    assert not isinstance(value, (bool, str))
    assert low <= value <= high
    assert isinstance(value, int) == (factor.form in ("int", "log_int"))
    if factor.step:
        steps = (value - low) / factor.step
        assert math.isclose(steps, round(steps), abs_tol=1e-6)


def number(distribution: FloatDistribution | IntDistribution, u: float) -> float:
    value = quantile(distribution, u)
    assert not isinstance(value, str)
    return value


# Every configuration


@some
@given(studies(), st.data())
def test_points_of_the_cube_give_configurations_of_the_study(data: Plain, draw: st.DataObject) -> None:
    spec = StudySpec.from_dict(data)
    found = Space.of(spec, n_units=N_UNITS)
    point = draw.draw(st.lists(unit_interval, min_size=len(found.dimensions), max_size=len(found.dimensions)))
    config = found.at(point)
    check_configuration(spec, config)
    assert config.keys() == found.distributions(config).keys()


@some
@given(studies(), st.integers(0, 2**32 - 1))
def test_what_optuna_suggests_are_configurations_of_the_study(data: Plain, seed: int) -> None:
    spec = StudySpec.from_dict(data)
    found = Space.of(spec, n_units=N_UNITS)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    config = found.suggest(trial)
    check_configuration(spec, config)
    assert trial.params == config
    assert trial.distributions == found.distributions(config)


@some
@given(studies(), st.data())
def test_a_configuration_handed_to_optuna_comes_back_as_it_is(data: Plain, draw: st.DataObject) -> None:
    found = Space.of(StudySpec.from_dict(data), n_units=N_UNITS)
    size = len(found.dimensions)
    config = found.at(draw.draw(st.lists(unit_interval, min_size=size, max_size=size)))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna only warns of a value out of range, and draws another
        assert found.suggest(study.ask()) == config


def test_a_choice_that_a_point_writes_as_a_whole_number_keeps_its_type() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"data_fraction": 1})
    config = space({"data_fraction": {"choice": [0.5, 1.0]}}).suggest(study.ask())
    assert isinstance(config["data_fraction"], float)


# Distributions


@pytest.mark.parametrize("u", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_quantiles_of_real_ranges_are_exact(u: float) -> None:
    assert quantile(FloatDistribution(2.0, 4.0), u) == pytest.approx(2 + 2 * u)
    assert quantile(FloatDistribution(1e-4, 1e-1, log=True), u) == pytest.approx(10 ** (-4 + 3 * u))


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), unit_interval)
def test_quantiles_of_real_ranges_never_leave_them_by_rounding(low: float, width: float, u: float) -> None:
    high = low + width
    if low < high:
        assert low <= number(FloatDistribution(low, high), u) <= high


@given(st.floats(1e-12, 1e6), st.floats(1.001, 1e6), unit_interval)
def test_quantiles_of_logarithmic_ranges_never_leave_them_by_rounding(low: float, ratio: float, u: float) -> None:
    assert low <= number(FloatDistribution(low, low * ratio, log=True), u) <= low * ratio


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (CategoricalDistribution(("a", "b", "c")), ["a", "b", "c"]),
        (IntDistribution(3, 9), [3, 4, 5, 6, 7, 8, 9]),
        (IntDistribution(3, 9, step=2), [3, 5, 7, 9]),
        (IntDistribution(5, 5), [5]),
        (FloatDistribution(0.1, 0.5, step=0.1), [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_listed_values_have_equal_shares_in_their_order(distribution: Any, values: list[Scalar]) -> None:
    n = len(values)
    for k, value in enumerate(values):
        inside = [(k + share) / n for share in (1e-9, 0.5, 1 - 1e-9)]
        assert [quantile(distribution, u) for u in inside] == [value] * 3
    assert quantile(distribution, 0.0) == values[0]
    assert quantile(distribution, 1.0) == values[-1]


def test_whole_numbers_on_a_logarithmic_scale_have_the_shares_that_optuna_gives_them() -> None:
    low, high = 2, 40
    total = math.log(high + 0.5) - math.log(low - 0.5)
    edge = 0.0
    for value in range(low, high + 1):
        share = (math.log(value + 0.5) - math.log(value - 0.5)) / total
        inside = [edge + share * part for part in (1e-6, 0.5, 1 - 1e-6)]
        assert [quantile(IntDistribution(low, high, log=True), u) for u in inside] == [value] * 3
        edge += share
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    drawn = Counter(study.ask().suggest_int("x", low, high, log=True) for _ in range(3000))
    for value in (low, low + 1, 20):
        share = (math.log(value + 0.5) - math.log(value - 0.5)) / total
        assert drawn[value] / 3000 == pytest.approx(share, abs=5 * math.sqrt(share / 3000))


@given(st.lists(unit_interval, min_size=2, max_size=2).map(sorted))
def test_quantiles_grow_with_their_share(pair: list[float]) -> None:
    for distribution in (IntDistribution(1, 99, log=True), IntDistribution(0, 9, step=3), FloatDistribution(0.5, 2, step=0.5)):
        low, high = (number(distribution, u) for u in pair)
        assert low <= high


@pytest.mark.parametrize(
    ("factor", "distribution"),
    [
        ({"log_uniform": [1e-4, 1e-1]}, FloatDistribution(1e-4, 1e-1, log=True)),
        ({"uniform": [1, 2]}, FloatDistribution(1.0, 2.0)),
        ({"uniform": [1, 2], "step": 0.3}, FloatDistribution(1.0, 1.9, step=0.3)),
        ({"uniform": [0.1, 0.7], "step": 0.2}, FloatDistribution(0.1, 0.7, step=0.2)),
    ],
)
def test_a_range_of_real_numbers_is_the_same_for_optuna(factor: Plain, distribution: FloatDistribution) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna warns where it has to shrink a range
        (dimension,) = space({"learning_rate": factor}).dimensions
    assert dimension.distribution == distribution


@pytest.mark.parametrize(
    ("factor", "distribution"),
    [
        ({"int": [1, 8]}, IntDistribution(1, 8)),
        ({"int": [1, 8], "step": 3}, IntDistribution(1, 7, step=3)),
        ({"log_int": [8, 256]}, IntDistribution(8, 256, log=True)),
        ({"choice": [8, 64]}, CategoricalDistribution((8, 64))),
    ],
)
def test_a_range_of_whole_numbers_is_the_same_for_optuna(factor: Plain, distribution: Any) -> None:
    (dimension,) = space({"batch_size": factor}).dimensions
    assert dimension.distribution == distribution


# Grid


@some
@given(studies(listed=True))
def test_a_grid_lists_configurations_of_the_study_and_each_once(data: Plain) -> None:
    spec = StudySpec.from_dict(data)
    listed = list(itertools.islice(Space.of(spec, n_units=N_UNITS).grid(), 300))
    for config in listed:
        check_configuration(spec, config)
    assert len({tuple(config.items()) for config in listed}) == len(listed)


def test_a_grid_is_the_product_of_the_levels_with_the_last_factor_fastest() -> None:
    found = space({"batch_size": {"int": [16, 48], "step": 16}, "optimizer": {"choice": ["sgd", "adamw"]}})
    expected = [(size, optimizer) for size in (16, 32, 48) for optimizer in ("sgd", "adamw")]
    assert [tuple(config.values()) for config in found.grid()] == expected


def test_a_grid_leaves_out_conditional_factors_where_they_are_not_active() -> None:
    found = space(
        {
            "momentum": {"choice": [0.8, 0.9], "when": {"optimizer": "sgd"}},
            "optimizer": {"choice": ["sgd", "adamw"]},
            "batch_size": {"choice": [16, 32]},
        }
    )
    configs = [dict(config) for config in found.grid()]
    assert configs == [
        {"optimizer": "sgd", "momentum": 0.8, "batch_size": 16},
        {"optimizer": "sgd", "momentum": 0.8, "batch_size": 32},
        {"optimizer": "sgd", "momentum": 0.9, "batch_size": 16},
        {"optimizer": "sgd", "momentum": 0.9, "batch_size": 32},
        {"optimizer": "adamw", "batch_size": 16},
        {"optimizer": "adamw", "batch_size": 32},
    ]


def test_a_grid_of_billions_is_listed_one_by_one() -> None:
    found = space({"seed": {"int": [0, 2**31 - 1]}, "batch_size": {"int": [1, 65536]}, "resolution": {"int": [0, 2048]}})
    assert [config["resolution"] for config in itertools.islice(found.grid(), 3)] == [0, 1, 2]
    assert len(levels(found.dimensions[0].distribution)) == 2**31


# Conditions


def test_factors_come_after_those_that_their_conditions_speak_of() -> None:
    found = space(
        {
            "batch_norm_momentum": {"uniform": [0.01, 0.5], "when": {"batch_norm": "train"}},
            "lp_share": {"uniform": [0, 1], "when": {"strategy": ["lp_ft", "gradual"]}},
            "learning_rate": {"log_uniform": [1e-4, 1e-1]},
            "batch_norm": {"choice": ["train", "eval"], "when": {"strategy": "ft"}},
            "strategy": {"choice": ["ft", "lp_ft", "gradual"]},
        }
    )
    names = [dimension.name for dimension in found.dimensions]
    assert names == ["strategy", "batch_norm", "batch_norm_momentum", "lp_share", "learning_rate"]


@pytest.mark.parametrize(
    ("strategy", "batch_norm", "expected"),
    [
        (0.1, 0.1, {"strategy", "batch_norm", "batch_norm_momentum"}),
        (0.1, 0.9, {"strategy", "batch_norm"}),
        (0.9, 0.1, {"strategy"}),
    ],
)
def test_a_condition_on_an_inactive_factor_does_not_hold(strategy: float, batch_norm: float, expected: set[str]) -> None:
    found = space(
        {
            "strategy": {"choice": ["ft", "lp_ft"]},
            "batch_norm": {"choice": ["train", "eval"], "when": {"strategy": "ft"}},
            "batch_norm_momentum": {"uniform": [0.01, 0.5], "when": {"batch_norm": "train"}},
        }
    )
    assert found.at([strategy, batch_norm, 0.5]).keys() == expected


def test_a_condition_on_a_fixed_value_holds_always() -> None:
    found = space({"momentum": {"uniform": [0.8, 0.9], "when": {"optimizer": "sgd"}}}, fixed={"optimizer": "sgd"})
    assert found.at([0.5]).keys() == {"momentum"}


def test_a_condition_on_max_holds_at_the_number_of_units() -> None:
    found = space(
        {"frozen_depth": {"int": [0, "max"]}, "head_lr_multiplier": {"uniform": [1, 9], "when": {"frozen_depth": "max"}}}
    )
    assert found.at([1.0, 0.5]) == {"frozen_depth": N_UNITS, "head_lr_multiplier": 5.0}
    assert found.at([0.0, 0.5]) == {"frozen_depth": 0}


# Units


@pytest.mark.parametrize("factor", [{"int": [0, "max"]}, {"int": [0, N_UNITS]}])
def test_max_is_the_number_of_units(factor: Plain) -> None:
    (dimension,) = space({"frozen_depth": factor}).dimensions
    assert dimension.distribution == IntDistribution(0, N_UNITS)


def test_max_in_a_list_is_the_number_of_units() -> None:
    (dimension,) = space({"frozen_depth": {"choice": [0, "max"]}}).dimensions
    assert dimension.distribution == CategoricalDistribution((0, N_UNITS))


def test_several_backbones_are_the_first_dimension() -> None:
    found = space({"learning_rate": {"log_uniform": [1e-4, 1e-1]}}, backbone=["resnet18", "resnet50"])
    assert found.dimensions[0].name == "backbone"
    assert levels(found.dimensions[0].distribution) == ("resnet18", "resnet50")


def test_everything_that_goes_beyond_the_units_is_named_at_once() -> None:
    factors = {
        "frozen_depth": {"int": [0, 19]},
        "reinit_units": {"choice": [0, 20]},
        "tuned_unit": {"int": [-1, 18]},
        "dropout": {"uniform": [0, 0.5], "when": {"frozen_depth": [0, 19]}},
    }
    with pytest.raises(SpecError) as caught:
        space(factors)
    assert {problem.where for problem in caught.value.problems} == {
        "factors.frozen_depth.int[1]",
        "factors.reinit_units.choice[1]",
        "factors.tuned_unit.int[1]",
        "factors.dropout.when.frozen_depth",
    }
